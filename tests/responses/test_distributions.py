import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import small
import torch
from fuzzing import count, damage, rounds

from masters.data.questions import Questions, Ragged, load_questions
from masters.data.tasks import vocabulary
from masters.masking.teacher_mask import TeacherMask
from masters.models.loading import load
from masters.models.packing import pack, response_logits
from masters.models.small import build
from masters.models.source import Source
from masters.objective.topk import Packed
from masters.responses import teacher_logprobs as module
from masters.responses.teacher_logprobs import TopK, distributions
from masters.settings import ModelSpec

COUNT = 9
WANTED = [4, 0, 7, 2, 8]


class Setting(NamedTuple):
    questions: Questions
    groups: list[list[np.ndarray]]
    source: Source
    other: Source


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("distributions")
    with small.scratch(folder):
        sources = []
        for seed in (0, 1):
            model, processor = build(ModelSpec(width=16, layers=1), vocabulary(("charts",)), seed)
            sources.append(Source(f"model{seed}", folder / f"model{seed}"))
            model.save_pretrained(sources[-1].folder)
            processor.save_pretrained(sources[-1].folder)
        questions = load_questions(("charts",), "train", COUNT, processor)
        rng = np.random.default_rng(0)
        groups = [
            [rng.integers(6, len(processor.tokenizer), rng.integers(1, 8)) for _ in range(3)] for _ in WANTED
        ]
        yield Setting(questions, groups, *sources)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("a model was loaded again")

    monkeypatch.setattr(Source, "load", fail)


def expected(setting: Setting, source: Source) -> list[np.ndarray]:
    """Log-probabilities of each response computed alone, in float32."""
    model, _ = load(source.folder)
    found = []
    with torch.inference_mode(), TeacherMask(model).apply(source.ratio):
        for index, group in zip(WANTED, setting.groups, strict=True):
            for tokens in group:
                features = [setting.questions.image_features([index])]
                batch = pack([setting.questions.prompt(index)], [[tokens]], features)
                found.append(response_logits(model, batch)[0, 0].float().log_softmax(-1).numpy())
    return found


@pytest.mark.parametrize("ratio", [0.0, 0.3])
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_stored_log_probabilities_are_the_models(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, ratio: float, batch: int
) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    source = Source("large", setting.source.folder, ratio)
    kept = distributions(source, setting.questions, WANTED, setting.groups)
    truth = expected(setting, source)
    lengths = [len(tokens) for group in setting.groups for tokens in group]
    assert len(kept) == len(truth) == len(lengths)
    for row, (values, length) in enumerate(zip(truth, lengths, strict=True)):
        assert kept[row].dtype == np.float16 and kept[row].shape == (length, values.shape[1])
        assert np.abs(kept[row].astype(np.float32) - values).max() < 5e-3
        assert np.exp(kept[row].astype(np.float64)).sum(-1) == pytest.approx(np.ones(length), abs=5e-3)


def test_top_k_keeps_the_largest_entries(setting: Setting) -> None:
    whole = distributions(setting.source, setting.questions, WANTED, setting.groups)
    top = distributions(setting.source, setting.questions, WANTED, setting.groups, top_k=20)
    assert len(top) == len(whole)
    assert isinstance(top, TopK) and isinstance(whole, Ragged)
    for row in range(len(whole)):
        back, true = top[row].logits().numpy(), whole[row].astype(np.float32)
        assert back.shape == true.shape
        place = np.argsort(-true, axis=-1)[:, :10]
        difference = np.take_along_axis(back, place, axis=-1) - np.take_along_axis(true, place, axis=-1)
        assert np.abs(difference).max() < 5e-3
    assert top.rows.values.nbytes < whole.values.nbytes


def test_stored_distributions_need_no_model(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    first = distributions(setting.source, setting.questions, WANTED, setting.groups)
    values = np.array(first.values)
    forbid(monkeypatch)
    again = distributions(setting.source, setting.questions, WANTED, setting.groups)
    assert (again.values == values).all() and (again.offsets == first.offsets).all()


@pytest.mark.fuzz
@pytest.mark.parametrize("top_k", [None, 20])
def test_damaged_log_probabilities_are_named_or_computed_again(
    setting: Setting, top_k: int | None, tmp_path: Path
) -> None:
    asked = setting.source, setting.questions, WANTED, setting.groups, top_k
    first = distributions(*asked)
    folder, kept = first.folder, tmp_path / "kept"
    shutil.copytree(folder, kept)
    files = sorted(kept.iterdir())
    for seed in range(rounds(40)):
        rng = random.Random(seed)
        path = folder / rng.choice(files).name
        how = damage(path, files, rng)
        if path.read_bytes() == (kept / path.name).read_bytes():
            continue
        try:
            again = distributions(*asked)
            assert path.name == "SHA256SUMS", how  # an unlisted file is not checked
            assert all(same(again[row], first[row]) for row in range(len(first)))
            count("teacher log-probabilities, damaged", named=False)
        except ValueError as error:
            assert path.name in str(error) or path.name == "SHA256SUMS"
            assert str(folder) in str(error) and "delete" in str(error) and "\n" not in str(error)
            count("teacher log-probabilities, damaged", named=True)
        shutil.copy(kept / path.name, path)
    (folder / "SHA256SUMS").unlink()
    with pytest.warns(UserWarning, match="is incomplete: set aside"):
        again = distributions(*asked)
    assert all(same(again[row], first[row]) for row in range(len(first)))


def same(some: np.ndarray | Packed, others: np.ndarray | Packed) -> bool:
    if isinstance(some, Packed) and isinstance(others, Packed):
        return some.rows.equal(others.rows)
    return np.array_equal(some, others)


def test_other_inputs_are_computed_again(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    distributions(setting.source, setting.questions, WANTED, setting.groups)
    forbid(monkeypatch)
    changed = [list(group) for group in setting.groups]
    changed[2][1] = changed[2][1].copy()
    changed[2][1][-1] = 6 if changed[2][1][-1] != 6 else 7
    # The same tokens, split differently.
    flat = np.concatenate(setting.groups[0])
    cut = [[flat[:1], flat[1:-1], flat[-1:]], *setting.groups[1:]]
    assert [len(part) for part in cut[0]] != [len(part) for part in setting.groups[0]]
    others: list[tuple[Source, list[int], list[list[np.ndarray]]]] = [
        (Source("large", setting.source.folder, 0.2), WANTED, setting.groups),
        (setting.other, WANTED, setting.groups),
        (setting.source, [4, 0, 7, 2, 1], setting.groups),
        (setting.source, WANTED, changed),
        (setting.source, WANTED, cut),
    ]
    for source, wanted, groups in others:
        with pytest.raises(AssertionError, match="loaded again"):
            distributions(source, setting.questions, wanted, groups)


def test_a_failure_leaves_no_files(setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(module, "response_projection", fail)
        with pytest.raises(MemoryError):
            distributions(setting.source, setting.questions, WANTED, setting.groups)
    assert not [path for path in (tmp_path / "cache" / "distributions").iterdir() if path.is_dir()]
    assert len(distributions(setting.source, setting.questions, WANTED, setting.groups)) == 3 * len(WANTED)


def test_a_full_memory_halves_the_batch(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = distributions(setting.source, setting.questions, WANTED, setting.groups)
    quick, sizes = module.response_projection, []

    def full(model: Any, batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch.images["pixel_values"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return quick(model, batch, *rest)

    monkeypatch.setattr(module, "response_projection", full)
    source = Source("large", setting.source.folder, 1e-9)  # masks nothing, and is not stored yet
    again = distributions(source, setting.questions, WANTED, setting.groups)
    assert max(sizes) > 2 and sizes[-1] <= 2
    assert np.abs(again.values.astype(np.float32) - whole.values.astype(np.float32)).max() < 5e-3


def test_a_disk_that_is_too_small_is_told_before_a_model_is_loaded(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    told = r"need 0\.0 GiB and .* left; keep fewer entries"
    with pytest.raises(ValueError, match=told) as error:
        distributions(setting.source, setting.questions, WANTED, setting.groups, vocabulary=100)
    assert "\n" not in str(error.value)


def test_rows_without_a_token_are_dropped(setting: Setting, tmp_path: Path) -> None:
    model, processor = load(setting.source.folder)
    tokens = len(processor.tokenizer)
    model.resize_token_embeddings(tokens + 7, mean_resizing=False)
    with torch.no_grad():  # rows that would be the most probable everywhere
        model.get_output_embeddings().weight[tokens:] = model.get_output_embeddings().weight[6:13] * 50
    padded = Source("large", tmp_path / "padded")
    model.save_pretrained(padded.folder)
    processor.save_pretrained(padded.folder)
    arguments = setting.questions, WANTED, setting.groups
    plain = distributions(setting.source, *arguments, vocabulary=tokens)
    cut = distributions(padded, *arguments, vocabulary=tokens)
    whole = distributions(padded, *arguments)
    for one, other, wide in zip(plain, cut, whole, strict=True):
        assert one.shape == other.shape and wide.shape[-1] == tokens + 7
        assert np.array_equal(one, other)
