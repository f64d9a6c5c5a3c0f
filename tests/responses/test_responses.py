import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import small
import torch
from stored import responses
from transformers import PreTrainedModel

from masters.data.questions import Questions, load_questions
from masters.data.tasks import vocabulary
from masters.masking.teacher_mask import TeacherMask
from masters.models.loading import banned_tokens, load
from masters.models.packing import pack, response_logits
from masters.models.small import build
from masters.models.source import Source
from masters.responses import cached as package
from masters.responses.cached import open_store
from masters.responses.engines import Response
from masters.responses.engines import local as engines
from masters.responses.engines.local import generate
from masters.responses.store import ResponseStore
from masters.settings import ModelSpec, Sampling

COUNT = 24
SAMPLING = Sampling(max_new_tokens=10)
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Setting:
    """A saved small untrained model that often ends its responses, and questions."""

    model: PreTrainedModel
    processor: Any
    questions: Questions
    source: Source
    other: Source

    def ask(self, n: int = 2, wanted: Any = range(COUNT), **changes: Any) -> pd.DataFrame:
        given: dict[str, Any] = {"source": self.source, "sampling": SAMPLING, "seed": 0} | changes
        return responses(
            processor=self.processor, questions=self.questions, wanted=list(wanted), n=n, **given
        )

    def store(self, **changes: Any) -> ResponseStore:
        given: dict[str, Any] = {"source": self.source, "sampling": SAMPLING, "seed": 0} | changes
        return open_store(processor=self.processor, **given)

    def write(
        self,
        n: range = range(2),
        seed: int | None = 0,
        batch: int | None = None,
        sampling: Sampling = SAMPLING,
    ) -> list[Response]:
        asked = self.model, self.processor, self.questions, range(COUNT)
        batches = generate(*asked, n, sampling, seed, batch)
        answers = [answer for batch in batches for answer in batch]
        return sorted(answers, key=lambda answer: (answer.question, answer.index))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("responses")
    with small.scratch(folder):
        words = vocabulary(("charts",))
        sources = []
        for seed in (0, 1):
            model, processor = build(ModelSpec(width=16, layers=1), words, seed)
            with torch.no_grad():
                model.get_output_embeddings().weight[processor.tokenizer.eos_token_id] *= 3
            sources.append(Source(f"model{seed}", folder / f"model{seed}"))
            model.save_pretrained(sources[-1].folder)
            processor.save_pretrained(sources[-1].folder)
        model, processor = load(sources[0].folder)
        questions = load_questions(("charts",), "train", COUNT, processor)
        yield Setting(model, processor, questions, *sources)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start each test with an empty cache."""
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("responses were generated again")

    monkeypatch.setattr(engines.TransformersEngine, "writer", fail)


def same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Compare responses; log-probabilities up to float32 differences between batch sizes."""
    exact = ["question", "content", "index", "text", "finish", "correct"]
    if not one[exact].equals(other[exact]):
        return False
    pairs = [zip(one[name], other[name], strict=True) for name in ("tokens", "logprobs")]
    return all(len(a) == len(b) and np.allclose(a, b, atol=1e-4) for pair in pairs for a, b in pair)


# --- the engine ---


def alike(some: list[Response], others: list[Response], tolerance: float = 1e-4) -> None:
    """Assert equal tokens, and log-probabilities within a tolerance."""
    for a, b in zip(some, others, strict=True):
        assert (a.question, a.index, a.tokens) == (b.question, b.index, b.tokens)
        assert a.logprobs == pytest.approx(b.logprobs, abs=tolerance)


@pytest.mark.parametrize("seed", [0, None])
def test_responses_do_not_depend_on_the_batch(setting: Setting, seed: int | None) -> None:
    n = range(3) if seed is not None else range(1)
    whole = setting.write(n, seed)
    for rows in (1, 2, 7):
        pieces = setting.write(n, seed, rows)
        alike(pieces, whole)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory")]
)
def test_a_full_memory_halves_the_batch(setting: Setting, error: Exception) -> None:
    whole, sizes = setting.write(range(3)), []

    def fill(_: Any, args: Any, kwargs: Any) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise error

    inner: Any = setting.model.model
    hook = inner.register_forward_pre_hook(fill, with_kwargs=True)
    try:
        alike(setting.write(range(3)), whole)
        assert sizes[0] > 2
        sizes.clear()
        error.args = ("something else",)
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            with pytest.raises(RuntimeError, match="something else"):
                setting.write(range(3))
    finally:
        hook.remove()


def test_one_response_that_does_not_fit_is_one_clear_line(setting: Setting) -> None:
    def fill(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = setting.model.register_forward_pre_hook(fill)
    inner: Any = setting.model.model
    other = inner.register_forward_pre_hook(fill)
    try:
        with pytest.raises(ValueError, match=r"question \S+: the memory is too small for one response"):
            setting.write(range(3))
    finally:
        hook.remove()
        other.remove()


def test_all_end_tokens_of_the_generation_config_end_a_response(setting: Setting) -> None:
    config = setting.model.generation_config
    before = setting.write(range(3))
    other = next(a.tokens[1] for a in before if len(a.tokens) > 3)
    kept, kept_end = config.eos_token_id, setting.processor.tokenizer.eos_token_id
    config.eos_token_id = [kept_end, other]
    try:
        after = setting.write(range(3))
    finally:
        config.eos_token_id = kept
    for a, b in zip(after, before, strict=True):
        ends = [place for place, token in enumerate(b.tokens) if token in (other, kept_end)]
        assert a.tokens == (b.tokens[: ends[0] + 1] if ends else b.tokens)
        assert a.finish == ("stop" if ends else "length")
    assert any(a.tokens[-1] == other for a in after)


def test_later_responses_do_not_depend_on_earlier_ones(setting: Setting) -> None:
    together = [a.tokens for a in setting.write(range(4)) if a.index >= 2]
    assert [a.tokens for a in setting.write(range(2, 4))] == together


def test_log_probabilities_are_those_of_a_whole_forward_pass(setting: Setting) -> None:
    n = 3
    answers = setting.write(range(n))
    place = setting.questions.position()
    wanted = [place[answer.question] for answer in answers[::n]]
    groups = [
        [np.array(answer.tokens) for answer in answers[start : start + n]]
        for start in range(0, len(answers), n)
    ]
    features = [setting.questions.image_features([index]) for index in wanted]
    batch = pack([setting.questions.prompt(index) for index in wanted], groups, features)
    with torch.inference_mode():
        logprobs = response_logits(setting.model, batch).log_softmax(-1)
    chosen = logprobs.gather(-1, batch.tokens[..., None])[..., 0][batch.mask]
    kept = np.concatenate([answer.logprobs for answer in answers])
    assert np.allclose(chosen.numpy(), kept, atol=1e-4)
    assert kept.max() <= 0


@pytest.mark.parametrize("seed", [0, None])
def test_banned_tokens_are_never_generated(setting: Setting, seed: int | None) -> None:
    banned = set(banned_tokens(setting.processor, len(setting.processor.tokenizer)))
    assert setting.processor.image_token_id in banned
    hot = Sampling(temperature=50, top_p=1, top_k=0, max_new_tokens=10)
    written = {token for answer in setting.write(range(20), seed, sampling=hot) for token in answer.tokens}
    assert not written & banned
    assert seed is None or len(written) > len(setting.processor.tokenizer) - len(banned) - 5


def test_a_response_says_how_it_finished(setting: Setting) -> None:
    end = setting.processor.tokenizer.eos_token_id
    answers = setting.write(range(4))
    assert {answer.finish for answer in answers} == {"stop", "length"}
    for answer in answers:
        assert end not in answer.tokens[:-1] and "<" not in answer.text
        if answer.finish == "stop":
            assert answer.tokens[-1] == end
        else:
            assert answer.tokens[-1] != end and len(answer.tokens) == SAMPLING.max_new_tokens


def test_greedy_answers_are_those_of_generate(setting: Setting) -> None:
    greedy, model = setting.write(range(1), None), cast(Any, setting.model)
    place = setting.questions.position()
    for answer in greedy:
        index = place[answer.question]
        prompt = torch.from_numpy(setting.questions.prompt(index).astype(np.int64))[None]
        out = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            **setting.questions.image_features([index]),
            do_sample=False,
            suppress_tokens=banned_tokens(setting.processor, len(setting.processor.tokenizer)),
            max_new_tokens=SAMPLING.max_new_tokens,
        )
        assert out[0, prompt.shape[1] :].tolist() == answer.tokens
    assert len({answer.text for answer in greedy}) > 3


# --- the store ---


def test_one_row_per_response_in_the_given_order(setting: Setting) -> None:
    wanted = [5, 2, 11]
    frame = setting.ask(3, wanted)
    ids = setting.questions.table["id"]
    assert list(frame["question"]) == [ids[i] for i in wanted for _ in range(3)]
    assert list(frame["index"]) == [0, 1, 2] * 3
    assert set(frame["correct"]) <= {0, 1}
    columns = {"question", "content", "index", "tokens", "text", "logprobs", "finish"}
    assert columns <= set(frame)


def test_a_second_call_generates_nothing(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}
    first = setting.ask(2, counts=counts)
    assert counts == {"generated": 2 * COUNT, "reused": 0}
    forbid(monkeypatch)
    assert same(setting.ask(2, counts=counts), first)
    assert counts == {"generated": 2 * COUNT, "reused": 2 * COUNT}
    fewer = setting.ask(1, range(7))
    assert list(fewer["text"]) == list(first["text"])[: 2 * 7 : 2]


def test_two_partial_calls_give_the_same_responses(setting: Setting, tmp_path: Path) -> None:
    whole = setting.ask(4)
    shutil.rmtree(tmp_path / "cache")
    counts: dict[str, int] = {}
    setting.ask(2, range(0, COUNT, 2), counts=counts)
    pieces = setting.ask(4, counts=counts)
    assert same(pieces, whole)
    assert counts == {"generated": 4 * COUNT, "reused": COUNT}
    assert len(held(setting)) == 4 * COUNT


def test_responses_of_a_masked_teacher_are_those_of_its_mask(setting: Setting) -> None:
    source = replace(setting.source, ratio=0.4)
    frame = setting.ask(2, source=source)
    model, _ = load(source.folder)
    with TeacherMask(model).apply(0.4):
        masked = replace(setting, model=model).write(range(2))
    by_key = {(answer.question, answer.index): answer.text for answer in masked}
    assert [by_key[key] for key in zip(frame["question"], frame["index"], strict=True)] == list(frame["text"])
    assert list(frame["text"]) != list(setting.ask(2)["text"])


def test_other_settings_are_another_store(setting: Setting) -> None:
    first = setting.store().folder
    others = [
        setting.store(source=replace(setting.source, ratio=0.2)).folder,
        setting.store(source=setting.other).folder,
        setting.store(seed=1).folder,
        setting.store(seed=None).folder,
        *(
            setting.store(sampling=SAMPLING.model_copy(update={name: value})).folder
            for name, value in (
                ("temperature", 0.9),
                ("top_p", 0.8),
                ("top_k", 10),
                ("repetition_penalty", 1.0),
                ("max_new_tokens", 11),
            )
        ),
    ]
    assert len({first, *others}) == 10
    assert setting.store().folder == first


class Harsh:
    """Call everything wrong and count the calls."""

    name = "harsh judge/1"

    def __init__(self) -> None:
        self.asked = 0

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
        self.asked += len(responses)
        return [0] * (len(responses) - 1) + [None]


def test_another_judge_needs_no_new_responses(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    first, harsh = setting.ask(2), Harsh()
    forbid(monkeypatch)
    other = setting.ask(2, judge=harsh)
    assert other["correct"].isna().sum() == 1 and (other["correct"].dropna() == 0).all()
    assert harsh.asked == 2 * COUNT
    setting.ask(2, judge=harsh)
    assert harsh.asked == 2 * COUNT
    assert same(setting.ask(2), first)


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
def test_a_damaged_shard_is_named_and_only_its_responses_are_generated_again(
    setting: Setting, how: str
) -> None:
    setting.ask(2, range(10))
    (early,) = setting.store().shards()
    whole = setting.ask(2)
    (late,) = set(setting.store().shards()) - {early}
    content = {"truncated": late.read_bytes()[:-100], "empty": b"", "text": b"no parquet" * 50}[how]
    late.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged .*delete it and run") as error:
        setting.ask(2)
    assert str(late) in str(error.value) and "\n" not in str(error.value)
    (damage,) = setting.store().verify()
    assert (damage.path, damage.responses, damage.questions) == (late, 2 * (COUNT - 10), COUNT - 10)
    late.unlink()
    counts: dict[str, int] = {}
    assert same(setting.ask(2, counts=counts), whole)
    assert counts == {"generated": 2 * (COUNT - 10), "reused": 2 * 10}


def held(setting: Setting) -> list[tuple[str, int]]:
    """Return every row of the store as (content, index)."""
    frames = [pd.read_parquet(path, columns=["content", "index"]) for path in setting.store().shards()]
    return [pair for frame in frames for pair in zip(frame["content"], frame["index"], strict=True)]


def small_pieces() -> None:
    engines.ROWS = 8
    package.SHARD = 8


def slowly(setting: Setting) -> None:
    """Generate in small shards, with a pause after each batch."""
    small_pieces()
    quick = engines.prepare

    def slow(*args: Any) -> Any:
        time.sleep(0.1)
        return quick(*args)

    engines.prepare = slow
    torch.set_num_threads(1)
    setting.ask(2)


def end_of(process: Any) -> int | None:
    process.join(60)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail("a process that generates responses hung")
    code: int | None = process.exitcode
    return code


def test_a_kill_loses_no_more_than_a_shard(setting: Setting, tmp_path: Path) -> None:
    undisturbed = setting.ask(2)
    shutil.rmtree(tmp_path / "cache")
    process = FORK.Process(target=slowly, args=(setting,))
    process.start()
    deadline = time.monotonic() + 60
    while len(setting.store().shards()) < 2 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid or 0, 9)
    assert end_of(process) == -9
    kept = len(held(setting))
    assert 16 <= kept < 2 * COUNT
    counts: dict[str, int] = {}
    assert same(setting.ask(2, counts=counts), undisturbed)
    assert counts == {"generated": 2 * COUNT - kept, "reused": kept}
    assert len(held(setting)) == 2 * COUNT


def test_twenty_kills_leave_the_store_of_an_undisturbed_run(setting: Setting, tmp_path: Path) -> None:
    undisturbed = setting.ask(2)
    shutil.rmtree(tmp_path / "cache")
    rng, kills, starts = np.random.default_rng(0), 0, 0
    while kills < 20 and starts < 60:
        process = FORK.Process(target=slowly, args=(setting,))
        process.start()
        process.join(float(rng.uniform(0.02, 0.3)))
        starts += 1
        if process.is_alive():
            os.kill(process.pid or 0, 9)
            kills += 1
        assert end_of(process) in (-9, 0)
        if len(held(setting)) == 2 * COUNT:  # finished early: delete a shard, so work is left
            setting.store().shards()[0].unlink()
    assert kills == 20
    assert same(setting.ask(2), undisturbed)
    assert len(held(setting)) == len(set(held(setting))) == 2 * COUNT
    assert setting.store().verify() == []


def test_two_processes_with_different_questions_write_at_the_same_time(
    setting: Setting, tmp_path: Path
) -> None:
    undisturbed = setting.ask(2)
    shutil.rmtree(tmp_path / "cache")

    def half(part: int) -> None:
        small_pieces()
        torch.set_num_threads(1)
        setting.ask(2, range(part, COUNT, 2))

    processes = [FORK.Process(target=half, args=(part,)) for part in range(2)]
    for process in processes:
        process.start()
    assert [end_of(process) for process in processes] == [0, 0]
    assert setting.store().verify() == []
    counts: dict[str, int] = {}
    assert same(setting.ask(2, counts=counts), undisturbed)
    assert counts["generated"] == 0


def test_a_full_disk_loses_nothing_that_was_written(
    setting: Setting, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = setting.ask(8)
    subprocess.run(["mount", "-o", "remount,size=128k", str(small_disk)], check=True)
    monkeypatch.setenv("MASTERS_DATA", str(small_disk))
    monkeypatch.setattr(engines, "ROWS", 8)
    monkeypatch.setattr(package, "SHARD", 8)
    with pytest.raises(OSError, match=r"No space left on device: free some for .* and start again"):
        setting.ask(8)
    kept = len(held(setting))
    assert 0 < kept < 8 * COUNT
    assert setting.store().verify() == []
    assert not list(small_disk.rglob("*.new")) and not list(small_disk.rglob(".part-*"))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    counts: dict[str, int] = {}
    assert same(setting.ask(8, counts=counts), undisturbed)
    assert counts == {"generated": 8 * COUNT - kept, "reused": kept}


def test_deleted_responses_are_generated_again(setting: Setting) -> None:
    setting.ask(2)
    (early,) = setting.store().shards()
    whole = setting.ask(4)
    early.unlink()
    assert same(setting.ask(4), whole)


def test_two_processes_with_the_same_questions_generate_each_response_once(setting: Setting) -> None:
    processes = [FORK.Process(target=slowly, args=(setting,)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [end_of(process) for process in processes] == [0, 0]
    index = held(setting)
    assert len(index) == len(set(index)) == 2 * COUNT


def test_a_folder_without_weights_is_refused(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="safetensors"):
        Source("large", tmp_path).weights()


# --- equal questions, corrected labels ---


def test_equal_questions_share_their_responses_and_keep_their_own_labels(
    setting: Setting, tmp_path: Path
) -> None:
    folder = tmp_path / "questions"
    shutil.copytree(setting.questions.folder, folder)
    table = setting.questions.table.copy()
    table.loc[3, ["content", "question"]] = table.loc[1, ["content", "question"]]
    first = setting.ask(wanted=range(6))
    text = first.loc[first["question"] == table["id"][1], "text"].tolist()[0]
    table.loc[1, "answer"], table.loc[3, "answer"] = "something else", text or "empty"
    table.to_parquet(folder / "table.parquet")

    class Equal:
        name = "equal"

        def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
            pairs = zip(labels, responses, strict=True)
            return [int(label == (response or "empty")) for label, response in pairs]

    counts: dict[str, int] = {}
    shared = replace(setting, questions=Questions(folder)).ask(wanted=range(6), judge=Equal(), counts=counts)
    assert shared["question"].tolist() == [name for name in table["id"][:6] for _ in range(2)]
    assert counts == {"generated": 0, "reused": 10}
    rows = {place: shared[2 * place : 2 * place + 2] for place in range(6)}
    assert rows[3]["text"].tolist() == rows[1]["text"].tolist()
    assert rows[3]["correct"].tolist()[0] == 1 and rows[1]["correct"].tolist()[0] == 0
    assert set(rows[3]["label"]) == {text or "empty"} and set(rows[1]["label"]) == {"something else"}
    assert rows[5]["text"].tolist() == first[10:12]["text"].tolist(), "later questions keep their responses"


def test_equal_questions_are_generated_once(setting: Setting, tmp_path: Path) -> None:
    folder = tmp_path / "questions"
    shutil.copytree(setting.questions.folder, folder)
    table = setting.questions.table.copy()
    table.loc[3, "content"] = table.loc[1, "content"]
    table.to_parquet(folder / "table.parquet")
    counts: dict[str, int] = {}
    asked = replace(setting, questions=Questions(folder))
    frame = asked.ask(wanted=range(6), counts=counts)
    assert counts == {"generated": 10, "reused": 0} and len(frame) == 12
    assert asked.store().status(list(table["content"][:6]), 2).missing == 0
    assert same(frame, asked.ask(wanted=range(6)))
