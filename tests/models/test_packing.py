import importlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import families
import numpy as np
import pytest
import small
import torch
from torch import Tensor
from transformers import PreTrainedModel

from masters.data.questions import Questions
from masters.models import packing
from masters.models.packing import HeadOutput, PackedBatch, head_output, pack, project, response_logits
from masters.objective.logits import Projection, dense
from masters.objective.loss import cross_entropy

torch.set_num_threads(1)
TEXTS = [
    ["red .", "the answer is red .", "it is a red square , so the answer is red ."],
    ["blue", "the answer is blue .", "no ."],
    ["", "so , the answer is green .", "it is green ."],
]
RESPONSES = [[small.tokens(text) for text in group] for group in TEXTS]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return small.build()[0]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    return small.questions(tmp_path_factory.mktemp("packing") / "questions")


def packed(asked: Questions, which: Sequence[int], groups: Sequence[Sequence[np.ndarray]]) -> PackedBatch:
    return pack([asked.prompt(i) for i in which], groups, [asked.image_features([i]) for i in which])


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_of(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    return cross_entropy(response_logits(model, batch), batch.tokens, batch.mask)


def plain_logits(model: PreTrainedModel, asked: Questions, index: int, response: np.ndarray) -> Tensor:
    """The usual forward pass of prompt and response as one row, with the usual causal mask."""
    row = torch.from_numpy(np.concatenate([asked.prompt(index), response])).long()[None]
    logits: Tensor = model(input_ids=row, **asked.image_features([index])).logits[0]
    start = len(asked.prompt(index)) - 1
    return logits[start : start + len(response)]


def test_prompts_and_responses_of_these_tests_differ_in_length(asked: Questions) -> None:
    assert len({len(asked.prompt(i)) for i in range(3)}) == 2
    assert len({len(response) for group in RESPONSES for response in group}) >= 4


def test_packed_logits_and_gradients_equal_those_of_one_row_a_response(
    model: PreTrainedModel, asked: Questions
) -> None:
    batch = packed(asked, range(3), RESPONSES)
    together = response_logits(model, batch)
    losses = []
    for i, group in enumerate(RESPONSES):
        for j, response in enumerate(group):
            alone = plain_logits(model, asked, i, response)
            torch.testing.assert_close(together[i, j, : len(response)], alone, atol=1e-5, rtol=1e-5)
            losses.append(torch.nn.functional.cross_entropy(alone, torch.from_numpy(response)))
    expected = gradients(model, torch.stack(losses).mean())
    ours = gradients(model, loss_of(model, batch))
    assert ours.keys() == expected.keys() and len(ours) > 20
    assert any("vision_tower" in name and grad.abs().max() > 0 for name, grad in ours.items())
    for name, grad in ours.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-5)


def test_a_single_response_is_the_plain_causal_case(model: PreTrainedModel, asked: Questions) -> None:
    batch = packed(asked, [1], [RESPONSES[1][1:2]])
    size = batch.input_ids.shape[1]
    assert batch.tokens.shape == (1, 1, len(RESPONSES[1][1]))
    assert torch.equal(batch.matrix[0, 0], torch.ones(size, size).tril().bool())
    assert torch.equal(batch.positions[0], torch.arange(size))
    alone = plain_logits(model, asked, 1, RESPONSES[1][1])
    torch.testing.assert_close(response_logits(model, batch)[0, 0], alone, atol=1e-5, rtol=1e-5)


def test_order_and_padding_never_change_the_loss(model: PreTrainedModel, asked: Questions) -> None:
    with torch.no_grad():
        expected = loss_of(model, packed(asked, range(3), RESPONSES))
        reordered = packed(asked, [2, 0, 1], [RESPONSES[i][::-1] for i in (2, 0, 1)])
        single = [loss_of(model, packed(asked, [i], [RESPONSES[i]])) for i in range(3)]
        torch.testing.assert_close(loss_of(model, reordered), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.stack(single).mean(), expected, atol=1e-5, rtol=1e-5)


def test_no_response_sees_another(model: PreTrainedModel, asked: Questions) -> None:
    changed = [[RESPONSES[0][0], small.tokens("so no yes a , it"), RESPONSES[0][2]]]
    with torch.no_grad():
        before = response_logits(model, packed(asked, [0], RESPONSES[:1]))
        after = response_logits(model, packed(asked, [0], changed))
    for j in (0, 2):
        length = len(RESPONSES[0][j])
        torch.testing.assert_close(after[0, j, :length], before[0, j, :length], atol=1e-5, rtol=1e-5)
    assert (after[0, 1, 2] - before[0, 1, 2]).abs().max() > 1e-3


def test_what_was_packed_can_be_read_back(asked: Questions) -> None:
    batch = packed(asked, range(3), RESPONSES)
    for i, group in enumerate(RESPONSES):
        for j, response in enumerate(group):
            assert batch.tokens[i, j][batch.mask[i, j]].tolist() == response.tolist()
            places = batch.predictors[i, j, : len(response)]
            ids = batch.input_ids.flatten()
            assert ids[places[1:]].tolist() == response[:-1].tolist()
            assert ids[places[0]] == asked.prompt(i)[-1]
    assert batch.matrix.any(-1).all(), "a place that may look nowhere would give NaN"
    assert torch.equal(batch.to("cpu").tokens, batch.tokens)


@pytest.mark.parametrize("groups", [[], [RESPONSES[0], RESPONSES[1][:2]], [RESPONSES[0]]])
def test_numbers_of_responses_that_differ_are_refused(
    asked: Questions, groups: list[list[np.ndarray]]
) -> None:
    prompts = [asked.prompt(0), asked.prompt(1)]
    with pytest.raises(ValueError, match="the same number of responses"):
        pack(prompts, groups, {})


def test_an_empty_response_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least its end token"):
        pack([np.array([1, 2])], [[np.array([], dtype=np.int64)]], {})


def long() -> tuple[PackedBatch, list[int]]:
    """Groups that fill several blocks of places, and the lengths of their prompts."""
    rng = np.random.default_rng(0)
    sizes = [(70, [260, 250, 60]), (150, [1, 30, 5]), (3, [2, 140, 128])]
    prompts = [rng.integers(1, 9, prompt) for prompt, _ in sizes]
    groups = [[rng.integers(1, 9, size) for size in responses] for _, responses in sizes]
    return pack(prompts, groups, [{}] * 3), [len(prompt) for prompt in prompts]


def one_by_one(batch: PackedBatch, prompts: list[int]) -> Tensor:
    """Who sees whom, from where the tokens were put."""
    rows, length = batch.input_ids.shape
    seen = torch.eye(length, dtype=torch.bool).repeat(rows, 1, 1)
    for question, size in enumerate(prompts):
        row, last = divmod(int(batch.predictors[question, 0, 0]), length)
        prompt = list(range(last - size + 1, last + 1))
        parts = [prompt]
        for response, tokens in zip(batch.predictors[question], batch.mask[question], strict=True):
            own = [int(place) % length for place in response[1 : int(tokens.sum())]]
            seen[row][np.ix_(own, prompt)] = True
            parts.append(own)
        for part in parts:
            seen[row][np.ix_(part, part)] = torch.ones(len(part), len(part), dtype=torch.bool).tril()
    return seen[:, None]


def test_the_matrix_holds_the_pairs_that_one_by_one_gives() -> None:
    batch, prompts = long()
    assert batch.input_ids.shape == (3, 637)
    tokens = (batch.segment >= 0)[:, None, :, None]
    assert torch.equal(batch.matrix & tokens, one_by_one(batch, prompts) & tokens)
    assert batch.matrix.any(-1).all(), "a softmax over no token would be NaN"


HEADS = {
    "gemma4.Gemma4": ({"final_logit_softcapping": 30.0}, HeadOutput(1.0, 30.0)),
    "gemma3.Gemma3": ({"final_logit_softcapping": 30.0}, HeadOutput()),  # its text model alone caps
    "granite4_vision.Granite4Vision": ({"logits_scaling": 8.0}, HeadOutput(0.125)),
    "hyperclovax_vision_v2.HyperCLOVAXVisionV2": ({"logits_scaling": 8.0}, HeadOutput(8.0)),
    "aya_vision.AyaVision": ({"logit_scale": 0.0625}, HeadOutput()),
    "qwen3_vl.Qwen3VL": ({}, HeadOutput()),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_a_family_does_to_the_output_of_its_head(name: str) -> None:
    """The same setting multiplies in one family, divides in another, and does nothing in a third."""
    settings, expected = HEADS[name]
    module, kind = name.split(".")
    of = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    model = object.__new__(getattr(of, f"{kind}ForConditionalGeneration"))
    text = SimpleNamespace(**settings)
    object.__setattr__(model, "config", SimpleNamespace(get_text_config=lambda: text))
    assert head_output(model) == expected


def test_capped_logits_are_those_of_the_models_own_forward() -> None:
    config, _ = families.configuration("paligemma")
    config.get_text_config().final_logit_softcapping = 0.1
    model, ids = families.build(config).eval(), torch.randint(1, 30, (1, 6))
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        ours, bare = dense(project(model, hidden)), model.get_output_embeddings()(hidden)
    torch.testing.assert_close(ours, own)
    assert float((bare - own).abs().max()) > 1e-3


def test_a_factor_of_the_logits_leaves_them_to_be_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.build()[0]
    monkeypatch.setattr(packing, "head_output", lambda of: HeadOutput(0.25))
    head: Any = model.get_output_embeddings()
    hidden = torch.randn(3, 5, head.in_features)
    made = project(model, hidden, 7)
    assert isinstance(made, Projection)
    torch.testing.assert_close(dense(made), 0.25 * head(hidden)[..., :7])
