"""Packing for every family: pictures of several sizes, several pictures in a prompt, lengths that differ."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import families
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from masters.objective import cross_entropy
from masters.packing import PackedBatch, pack, response_logits

torch.set_num_threads(1)
SIZES = [[(40, 40)], [(40, 90)], [(64, 30), (50, 80)]]  # of the pictures of three questions
LENGTHS = [[5, 1, 8], [3, 7, 2], [6, 6, 4]]  # of their responses
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@dataclass
class Setting:
    model: PreTrainedModel
    prompts: list[np.ndarray]
    images: list[dict[str, Tensor]]
    responses: list[list[np.ndarray]]

    def pack(self, which: list[int], together: bool = True, pad: int = 0) -> PackedBatch:
        chosen = [[values[i] for i in which] for values in (self.prompts, self.responses, self.images)]
        return pack(*chosen, pad, together)  # type: ignore[arg-type]

    def loss(self, which: list[int], together: bool = True, pad: int = 0) -> Tensor:
        batch = self.pack(which, together, pad)
        return cross_entropy(response_logits(self.model, batch), batch.tokens, batch.mask)

    def alone(self, question: int, response: int) -> Tensor:
        """Logits of one response from the model's own forward pass: one row, no mask, no padding."""
        prompt, tokens = self.prompts[question], self.responses[question][response]
        ids = torch.from_numpy(np.concatenate([prompt, tokens]))[None]
        kinds = (ids == families.IMAGE).int()
        extra = {"mm_token_type_ids": kinds} if hasattr(self.model.model, "get_rope_index") else {}
        logits: Tensor = self.model(input_ids=ids, **extra, **self.images[question]).logits[0]
        return logits[len(prompt) - 1 : -1]


def processed(processor: Any, sizes: list[tuple[int, int]], rng: np.random.Generator) -> dict[str, Tensor]:
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    made = processor([pictures], return_tensors="pt")
    return {name: tensor for name, tensor in made.items() if name != "num_patches"}


@cache
def setting(family: str) -> Setting:
    """A model with prompts such as ``text, picture, text, picture, text``, of several lengths."""
    rng = np.random.default_rng(0)
    config, processor = families.configuration(family)
    model = families.build(config)

    def words(count: int) -> np.ndarray:
        return rng.integers(1, families.IMAGE, count)

    images, prompts = [], []
    for number, sizes in enumerate(SIZES):
        images.append(processed(processor, sizes, rng))
        with torch.no_grad():
            features = model.model.get_image_features(**images[-1]).pooler_output
        counts = [part.numel() // part.shape[-1] for part in features]
        if len(counts) != len(sizes):  # parts are tiles, or the question
            share = sum(counts) // len(sizes)
            counts = [share] * (len(sizes) - 1) + [sum(counts) - share * (len(sizes) - 1)]
        parts = [words(2 + number)]
        for count in counts:
            parts += [np.full(count, families.IMAGE), words(3)]
        prompts.append(np.concatenate(parts))
    responses = [[np.append(words(length - 1), families.STOP) for length in group] for group in LENGTHS]
    return Setting(model, prompts, images, responses)


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("together", [True, False], ids=["packed", "a row a response"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_logits_and_gradients_are_those_of_the_model_on_each_response_alone(
    family: str, together: bool
) -> None:
    here = setting(family)
    batch = here.pack([0, 1, 2], together)
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
    here = setting(family)
    with torch.no_grad():
        expected = here.loss([0, 1, 2])
        single = torch.stack([here.loss([question]) for question in range(3)])
        torch.testing.assert_close(single.mean(), expected, **CLOSE)
        assert single.std() > 1e-3, "otherwise an exchange would not be seen"
        torch.testing.assert_close(here.loss([2, 0, 1]), expected, **CLOSE)
        torch.testing.assert_close(here.loss([0, 1, 2], pad=5), expected, **CLOSE)
        torch.testing.assert_close(here.loss([1, 2, 0], together=False, pad=5), expected, **CLOSE)
        for pair in ([0, 2], [2, 1]):
            torch.testing.assert_close(here.loss(pair), single[pair].mean(), **CLOSE)


def test_the_pictures_and_prompts_of_these_tests_differ() -> None:
    here = setting("qwen3_vl")
    assert len({len(prompt) for prompt in here.prompts}) == 3
    assert len(here.images[2]["image_grid_thw"]) == 2
    grids = torch.cat([images["image_grid_thw"] for images in here.images])
    assert len(grids.unique(dim=0)) == 4
    tiles = {tuple(images["pixel_values"].shape) for images in setting("idefics3").images}
    assert len(tiles) == 3
