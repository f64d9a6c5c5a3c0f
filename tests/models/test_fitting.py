import inspect
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pandas as pd
import pytest
import torch

from masters.models import compatibility
from masters.models.compatibility import image_tokens, measure, reads_packed
from masters.models.packing import PackedBatch, pack, response_logits
from masters.objective.options import LossOptions
from masters.training.examples import Example, Examples
from masters.training.train import Budget, train
from masters.training.trainer import Objective

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nobody_was_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "_warned", set())


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_reads_packed_rows_and_says_how_many_image_tokens_it_makes(
    family: str, tmp_path: Path
) -> None:
    here = families.setting(family)
    questions = here.questions(tmp_path / "questions")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure([here.model, families.build(here.model.config, seed=1)], questions)
    assert found.together and found.image_token == families.IMAGE
    assert found.positions == here.model.config.get_text_config().max_position_embeddings
    counts = [int((prompt == families.IMAGE).sum()) for prompt in here.prompts]
    assert found.image_tokens is not None and found.image_tokens.tolist() == counts
    for index, prompt in enumerate(here.prompts):
        found.check(questions, index, prompt, here.responses[index])


def test_a_picture_with_a_token_too_few_is_refused_by_the_name_of_its_question(tmp_path: Path) -> None:
    here = families.setting("internvl")
    questions = here.questions(tmp_path / "questions")
    found = measure([here.model], questions)
    short = np.delete(here.prompts[1], np.flatnonzero(here.prompts[1] == families.IMAGE)[0])
    with pytest.raises(
        ValueError, match=r"question 'q1': its prompt has 11 image tokens .* make 12"
    ) as caught:
        found.check(questions, 1, short, here.responses[1])
    assert "\n" not in str(caught.value)


def test_a_prompt_that_does_not_fit_with_its_responses_is_refused(tmp_path: Path) -> None:
    here = families.setting("internvl")
    questions = here.questions(tmp_path / "questions")
    found = measure([here.model], questions)
    prompt, room = here.prompts[0], 512 - len(here.prompts[0])
    found.check(questions, 0, prompt, [np.ones(room + 1, dtype=int)])
    with pytest.raises(
        ValueError, match=f"question 'q0': .* a response of {room + 2} do not fit the 512"
    ) as e:
        found.check(questions, 0, prompt, [np.ones(3, dtype=int), np.ones(room + 2, dtype=int)])
    assert "\n" not in str(e.value)


def test_models_that_read_a_picture_unlike_are_refused(tmp_path: Path) -> None:
    here = families.setting("llava")
    config, _ = families.configuration("llava")
    config.vision_config.patch_size = 8
    with pytest.raises(ValueError, match=r"'q0': one model of the run makes 4 image tokens .* another 16"):
        measure([here.model, families.build(config)], here.questions(tmp_path / "questions"))


def test_a_picture_of_each_kind_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = families.setting("llava")
    questions = here.questions(tmp_path / "questions")
    asked = []
    plain = here.model.model.get_image_features

    def counted(**images: torch.Tensor) -> Any:
        asked.append(images)
        return plain(**images)

    monkeypatch.setattr(here.model.model, "get_image_features", counted)
    counts = image_tokens(here.model, questions)
    assert counts is not None and counts.tolist() == [4, 4, 8]
    assert len(asked) == 2, "one picture and two pictures"


def mangled(part: str) -> Any:
    """A packing that is wrong in one way."""

    def wrong(*arguments: Any, together: bool = True) -> PackedBatch:
        batch = pack(*arguments, together=together)
        size = batch.input_ids.shape[1]
        if not together:
            return batch
        if part == "attention":  # a response sees those before it
            batch.segment.clamp_(max=1)
        else:  # a response stands where its row has come to
            batch.positions = torch.arange(size)[None]
        return batch

    return wrong


@pytest.mark.parametrize("part", ["attention", "positions"])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "internvl"])
def test_a_wrong_packing_is_caught(
    family: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = families.setting(family)
    questions = here.questions(tmp_path / "questions")
    monkeypatch.setattr(compatibility, "pack", mangled(part))
    name = type(here.model).__name__
    with pytest.warns(UserWarning, match=f"{name} cannot read .* logits differ by .* its own row") as told:
        assert not reads_packed(here.model, questions)
        assert not reads_packed(here.model, questions)
    assert len(told) == 1 and "\n" not in str(told[0].message), "once for each class"


def test_half_precision_is_no_wrong_packing_and_a_wrong_one_shows_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = families.setting("qwen3_vl")
    questions = here.questions(tmp_path / "questions")
    half = families.build(here.model.config).to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reads_packed(half, questions)
    monkeypatch.setattr(compatibility, "pack", mangled("attention"))
    with pytest.warns(UserWarning, match="bfloat16"):
        assert not reads_packed(half, questions)


def test_a_family_that_cannot_be_packed_gets_a_row_a_response(tmp_path: Path) -> None:
    here = families.setting("gemma3")
    questions = here.questions(tmp_path / "questions")
    with pytest.warns(UserWarning, match="Gemma3ForConditionalGeneration .* has a window of 8 tokens"):
        assert not measure([here.model], questions).together
    batch = here.pack([0, 1, 2], together=False)
    with torch.no_grad():
        logits = response_logits(here.model, batch)
        for question, group in enumerate(here.responses):
            for j, response in enumerate(group):
                alone = here.alone(question, j)
                torch.testing.assert_close(logits[question, j, : len(response)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_the_types_of_tokens_reach_a_model_that_sees_images_in_both_directions(
    family: str, tmp_path: Path
) -> None:
    here = replace(families.setting(family), model=families.build(families.configuration(family)[0]))
    with torch.no_grad():
        for weight in here.model.parameters():
            if weight.ndim == 2 and not weight.any():  # the projector of Gemma 3, which would show no image
                weight.normal_(std=0.2)
    batch, taken = here.pack([0, 1, 2], together=False), list[torch.Tensor]()
    plain = here.model.model.forward

    def watched(**inputs: Any) -> Any:
        taken.append(inputs["token_type_ids"])
        return plain(**inputs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        logits = response_logits(here.model, batch)
        watched.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
        patch.setattr(here.model.model, "forward", watched)
        assert torch.equal(response_logits(here.model, batch), logits)
        for question, group in enumerate(here.responses):
            for j, response in enumerate(group):
                alone = here.alone(question, j)
                torch.testing.assert_close(logits[question, j, : len(response)], alone, atol=1e-5, rtol=1e-5)
        patch.setattr(here.model.model, "forward", lambda **i: plain(**{**i, "token_type_ids": None}))
        without = response_logits(here.model, batch)
    difference = (without - logits)[batch.mask].abs().amax(-1)
    assert difference.max() > 1e-3, "otherwise they would not matter"
    expected = batch.segment != 0 if family == "paligemma" else batch.input_ids == families.IMAGE
    assert torch.equal(taken[0], expected.int())
    with pytest.warns(UserWarning, match="cannot read several responses in one row") as told:
        assert not measure([here.model], here.questions(tmp_path / "questions")).together
    assert len(told) == 1, "rows of their own are right"


def test_attention_that_does_not_take_the_mask_gets_a_row_a_response(tmp_path: Path) -> None:
    here = families.setting("qwen2_5_vl")
    model = families.build(deepcopy(here.model.config))  # the model's own, which it would change
    model.set_attn_implementation("eager")
    with pytest.warns(UserWarning, match="'eager' and only 'sdpa'"):
        assert not reads_packed(model, here.questions(tmp_path / "questions"))


def test_a_model_that_fails_on_packed_rows_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = families.setting("llava")
    plain = here.model.model.forward

    def picky(**inputs: Any) -> Any:
        if getattr(inputs["attention_mask"], "ndim", 0) == 4:
            raise ValueError("a mask has two dimensions\nand no more")
        return plain(**inputs)

    monkeypatch.setattr(here.model.model, "forward", picky)
    with pytest.warns(UserWarning, match="ValueError: a mask has two dimensions and no more;"):
        assert not reads_packed(here.model, here.questions(tmp_path / "questions"))


def trained(family: str, folder: Path) -> pd.DataFrame:
    here = families.setting(family)
    questions = here.questions(folder / "questions")
    student, teacher, reference = (families.build(here.model.config, seed) for seed in (1, 2, 1))
    budget = Budget(steps=3, batch=2, learning_rate=1e-3, schedule="constant", log_every=1)

    def make(position: int) -> Example:
        index = position % 3
        return Example(index, here.responses[index], accuracy=np.array([1, 0, 1]))

    objective = Objective(LossOptions(), [teacher], reference)
    return train(student, questions, Examples(6, make), objective, budget, folder / "run", "t")


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_training_with_a_row_a_response_gives_the_losses_of_packed_rows(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = trained(family, tmp_path / "packed")
    monkeypatch.setattr(compatibility, "_hindrance", lambda model: "a test wants it so")
    with pytest.warns(UserWarning, match="a test wants it so"):
        rows = trained(family, tmp_path / "rows")
    assert np.ptp(packed["loss"]) > 1e-3
    np.testing.assert_allclose(rows["loss"], packed["loss"], atol=1e-4)
