"""A choice masks the same weights wherever it is used: generation, scoring, and the exported folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import families
import numpy as np
import pytest
import small
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from masters.data.questions import Questions
from masters.masking.choice import PAPERS, MaskChoice
from masters.masking.criteria import Activation, Magnitude, Random
from masters.masking.teacher_mask import TeacherMask
from masters.models import calibration as module
from masters.models.calibration import calibrated
from masters.models.loading import load
from masters.models.packing import pack, response_logits
from masters.models.source import Source
from masters.responses.cached import open_store
from masters.responses.engines.local import TransformersEngine
from masters.responses.engines.vllm import save_masked
from masters.responses.store import StoreSpec
from masters.responses.teacher_logprobs import distributions
from masters.runtime.keys import hash_of
from masters.settings import Sampling

RATIO = 0.4
SAMPLING = Sampling(max_new_tokens=6)


class Setting(NamedTuple):
    folder: Path
    questions: Questions
    processor: Any
    norms: Path

    def choice(self, criterion: Any, part: Any = "all") -> MaskChoice:
        return MaskChoice(criterion, part, self.norms if criterion == "activation" else None)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("choices")
    with small.scratch(folder):
        model, processor = small.build(width=32)
        model.save_pretrained(folder / "large")
        processor.save_pretrained(folder / "large")
        questions = small.questions(folder / "questions")
        source = Source("large", folder / "large")
        norms = calibrated(source.folder, source.weights(), questions, range(len(questions)))
        yield Setting(source.folder, questions, processor, norms)


CHOICES = [("magnitude", "all"), ("random", "all"), ("activation", "all"), ("magnitude", "vision"),
           ("random", "language"), ("activation", "vision")]  # fmt: skip


def masked_by_hand(setting: Setting, choice: MaskChoice) -> PreTrainedModel:
    """Mask with the options of TeacherMask and the module names of this model."""
    model, _ = load(setting.folder)
    criteria: dict[str, Any] = {"magnitude": Magnitude(), "random": Random()}
    if choice.criterion == "activation":
        criteria["activation"] = Activation(load_file(setting.norms))
    include = {"all": None, "language": "language_model", "vision": "vision_tower"}[choice.part]
    TeacherMask(model, include, criterion=criteria[choice.criterion]).apply(RATIO)
    return model


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value == 0 for name, value in model.named_parameters() if value.dim() == 2}


@pytest.mark.parametrize(("criterion", "part"), CHOICES)
def test_generation_and_scoring_mask_the_same_weights(
    setting: Setting, criterion: str, part: str, tmp_path: Path
) -> None:
    choice = setting.choice(criterion, part)
    source, model = Source("large", setting.folder, RATIO, choice), masked_by_hand(setting, choice)
    with TransformersEngine().writer(source, setting.processor, setting.questions, SAMPLING, 0) as write:
        (written,) = write([0, 1], [0, 1])
    tokens = [[np.array(written[2 * i + j].tokens) for j in range(2)] for i in range(2)]
    order = [int(written[2 * i].question[1:]) for i in range(2)]
    kept = distributions(source, setting.questions, order, tokens)
    save_masked(setting.folder, RATIO, tmp_path / "exported", choice)
    exported, theirs = zeros(load(tmp_path / "exported")[0]), zeros(model)
    assert all(torch.equal(exported[name], theirs[name]) for name in theirs)
    for place, index in enumerate(order):
        prompt, image = setting.questions.prompt(index), setting.questions.image_features([index])
        for j in range(2):
            with torch.no_grad():
                logits = response_logits(model, pack([prompt], [[tokens[place][j]]], [image]))[0, 0]
            scores = logits.float().log_softmax(-1)
            ours = torch.from_numpy(kept[2 * place + j].astype(np.float32))
            assert (scores - ours).abs().max() < 5e-3
            taken = scores.gather(1, torch.from_numpy(tokens[place][j])[:, None])[:, 0]
            assert np.allclose(written[2 * place + j].logprobs, taken, atol=1e-4)


def test_every_choice_removes_different_weights(setting: Setting) -> None:
    found = set()
    for criterion, part in CHOICES:
        model, _ = load(setting.folder)
        with setting.choice(criterion, part).mask(model).apply(RATIO) as mask:
            found.add(hash_of({name: model.get_parameter(name).eq(0).int().tolist() for name in mask.names}))
    assert len(found) == len(CHOICES)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_parts_of_every_family(family: str) -> None:
    model = families.setting(family).model
    names = {part: set(MaskChoice(part=part).mask(model).names) for part in ("all", "language", "vision")}  # type: ignore[arg-type]
    assert names["language"] and names["vision"] and not names["language"] & names["vision"]
    assert all("vision" in name or "visual" in name for name in names["vision"])
    between = names["all"] - names["language"] - names["vision"]
    assert all(any(word in name for word in ("project", "connector", "merger")) for name in between)


def test_a_model_that_does_not_expose_its_parts() -> None:
    model = families.setting("llava").model.get_decoder()
    with pytest.raises(ValueError, match="does not expose its vision part: mask all of it"):
        MaskChoice(part="vision").mask(model)


def test_at_ratio_0_all_choices_are_equal(setting: Setting) -> None:
    plain = Source("large", setting.folder)
    for criterion, part in CHOICES:
        assert Source("large", setting.folder, 0.0, setting.choice(criterion, part)) == plain
        assert Source("large", setting.folder, RATIO, setting.choice(criterion, part)).ratio == RATIO
    assert Source("large", setting.folder, RATIO).title == "large"
    assert Source("large", setting.folder, RATIO, setting.choice("activation", "vision")).title == (
        "large (activation, vision)"
    )


def test_the_keys_of_the_papers_choice_are_those_of_before_there_were_others(setting: Setting) -> None:
    spec = StoreSpec(weights="ab", ratio=0.2, processor="x", sampling=SAMPLING, seed=0)
    before = {"weights": "ab", "ratio": 0.2, "processor": "x", "sampling": SAMPLING.model_dump(mode="json"),
              "seed": 0, "engine": "transformers", "version": 3}  # fmt: skip
    assert spec.model_dump(mode="json") == before and StoreSpec(**before) == spec
    stores = {
        open_store(
            Source("large", setting.folder, RATIO, setting.choice(*names)), setting.processor, SAMPLING, 0
        ).key
        for names in CHOICES
    }
    assert len(stores) == len(CHOICES)
    paper = open_store(Source("large", setting.folder, RATIO), setting.processor, SAMPLING, 0)
    assert paper.key in stores and "choice" not in paper.spec.model_dump()


def test_each_choice_is_scored_on_its_own(setting: Setting) -> None:
    groups = [[small.tokens("the answer is red")]]
    made = {
        distributions(
            Source("large", setting.folder, RATIO, setting.choice(*names)), setting.questions, [0], groups
        ).folder
        for names in CHOICES
    }
    assert len(made) == len(CHOICES)


def test_the_norms_are_those_of_the_prompts_and_measured_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load(setting.folder)
    layer = model.get_decoder().layers[0].self_attn.q_proj
    name = next(name for name, module in model.named_modules() if module is layer)
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    for index in range(len(setting.questions)):
        ids = torch.from_numpy(setting.questions.prompt(index).astype(np.int64))[None]
        with torch.no_grad():
            model(input_ids=ids, **setting.questions.image_features([index]))
    norms = load_file(setting.norms)[f"{name}.weight"]
    torch.testing.assert_close(norms, torch.cat(seen).norm(dim=0), atol=1e-4, rtol=1e-4)

    def fail(*args: Any) -> None:
        raise AssertionError("calibrated again")

    weights = Source("large", setting.folder).weights()
    monkeypatch.setattr(module, "load", fail)
    assert calibrated(setting.folder, weights, setting.questions, range(4)) == setting.norms
    with pytest.raises(AssertionError, match="again"):
        calibrated(setting.folder, weights, setting.questions, range(3))


def test_activation_needs_its_norms(setting: Setting) -> None:
    model, _ = load(setting.folder)
    with pytest.raises(ValueError, match=r"needs the norms of the model's inputs: take the source from Lab"):
        MaskChoice("activation").mask(model)


def test_the_papers_choice_has_no_key() -> None:
    assert PAPERS.key() == {} and str(PAPERS) == ""
    assert MaskChoice("random", "vision").key() == {"criterion": "random", "part": "vision"}
    assert MaskChoice("activation", norms=Path("a/b.safetensors")).key() == {
        "criterion": "activation", "norms": "b",
    }  # fmt: skip
