"""Packing for every family: pictures of several sizes, several pictures in a prompt, lengths that differ."""

import families
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from masters.models.packing import response_logits
from masters.objective.loss import cross_entropy

torch.set_num_threads(1)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "layout",
    [{}, {"together": False}],
    ids=["a question a row", "a response a row"],
)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_logits_and_gradients_are_those_of_the_model_on_each_response_alone(
    family: str, layout: dict[str, bool]
) -> None:
    here = families.setting(family)
    batch = here.pack([0, 1, 2], **layout)
    logits = response_logits(here.model, batch)
    losses = []
    for question, group in enumerate(here.responses):
        for j, response in enumerate(group):
            alone = here.alone(question, j)
            torch.testing.assert_close(logits[question, j, : len(response)], alone, **CLOSE)
            losses.append(torch.nn.functional.cross_entropy(alone, torch.from_numpy(response)))
    expected = gradients(here.model, torch.stack(losses).mean())
    ours = gradients(here.model, cross_entropy(logits, batch.tokens, batch.mask))
    assert ours.keys() == expected.keys()
    seen = [name for name in ours if ("vision" in name or "visual" in name) and ours[name].abs().max() > 1e-6]
    assert len(seen) > 10, "the picture has to matter"
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], **CLOSE)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_padding_and_the_choice_of_batch_never_change_a_loss(family: str) -> None:
    here = families.setting(family)
    with torch.no_grad():
        expected = here.loss([0, 1, 2])
        single = torch.stack([here.loss([question]) for question in range(3)])
        torch.testing.assert_close(single.mean(), expected, **CLOSE)
        assert single.std() > 1e-3, "otherwise an exchange would not be seen"
        torch.testing.assert_close(here.loss([2, 0, 1]), expected, **CLOSE)
        torch.testing.assert_close(here.loss([1, 2, 0], together=False), expected, **CLOSE)
        for pair in ([0, 2], [2, 1]):
            torch.testing.assert_close(here.loss(pair), single[pair].mean(), **CLOSE)


def test_the_pictures_and_prompts_of_these_tests_differ() -> None:
    here = families.setting("qwen3_vl")
    assert len({len(prompt) for prompt in here.prompts}) == 3
    assert len(here.images[2]["image_grid_thw"]) == 2
    grids = torch.cat([images["image_grid_thw"] for images in here.images])
    assert len(grids.unique(dim=0)) == 4
    tiles = {tuple(images["pixel_values"].shape) for images in families.setting("idefics3").images}
    assert len(tiles) == 3
