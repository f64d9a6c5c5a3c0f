from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from transformers import TopKLogitsWarper, TopPLogitsWarper

from masters.models.loading import banned_tokens
from masters.models.small import build
from masters.responses import sampling as module
from masters.responses.sampling import TopKTopP, draw, processors, uniforms
from masters.settings import ModelSpec, Sampling

PAPER = Sampling(max_new_tokens=6)
SETTINGS = [
    PAPER,
    Sampling(temperature=1, top_p=1, top_k=0, repetition_penalty=1, max_new_tokens=6),
    Sampling(temperature=0.7, top_p=1, top_k=5, repetition_penalty=1.3, max_new_tokens=6),
    Sampling(temperature=1.5, top_p=0.5, top_k=0, repetition_penalty=1, max_new_tokens=6),
]


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(count))


def test_draws_match_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.15, 0.0, 0.07, 0.03], dtype=torch.float64)
    count = 50_000
    drawn = draw(probabilities.log().float().expand(count, -1), noise(count))
    frequencies = np.bincount(drawn.numpy(), minlength=7)
    assert frequencies[1] == frequencies[4] == 0
    possible = probabilities.numpy() > 0
    expected = count * probabilities.numpy()[possible]
    assert chisquare(frequencies[possible], expected).pvalue > 0.01
    wrong = np.roll(expected, 1)
    assert chisquare(frequencies[possible], wrong).pvalue < 1e-6  # the test can detect a wrong distribution


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    """Test the ends of [0, 1) and the boundaries between two tokens."""
    hidden = -torch.inf
    rows = torch.tensor(
        [[hidden, 0.5, hidden, 0.5, hidden], [0.5, hidden, hidden, hidden, 0.5], [hidden] * 4 + [1.0]]
    )
    rows = torch.where(rows == hidden, rows, rows.abs().log())
    edges = [
        0.0,
        np.nextafter(0, 1),
        0.25,
        np.nextafter(0.5, 0),
        0.5,
        np.nextafter(0.5, 1),
        np.nextafter(1, 0),
    ]
    for edge in edges:
        drawn = draw(rows, torch.full((3,), edge, dtype=torch.float64))
        assert torch.isfinite(rows.gather(1, drawn[:, None])).all(), edge


def test_a_large_vocabulary_in_float32_never_gives_an_excluded_token() -> None:
    """In float32, many probabilities do not sum to exactly 1, and the last token may be excluded."""
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(64, 20_000, generator=generator)
    logits[:, ::3] = -torch.inf
    logits[:, -50:] = -torch.inf
    rows = logits.log_softmax(-1)
    top = np.nextafter(1, 0)
    for uniform in (torch.full((64,), top, dtype=torch.float64), noise(64), torch.zeros(64).double()):
        drawn = draw(rows, uniform)
        assert torch.isfinite(rows.gather(1, drawn[:, None])).all()


def test_the_order_of_the_numbers_is_the_order_of_the_tokens() -> None:
    row = torch.tensor([[0.2, 0.3, 0.5]]).log()
    drawn = [int(draw(row, torch.tensor([u], dtype=torch.float64))) for u in (0.1, 0.25, 0.45, 0.55, 0.9)]
    assert drawn == [0, 1, 1, 2, 2]


def test_random_numbers_depend_on_seed_question_and_index_alone() -> None:
    (first,) = uniforms(0, [("charts-1", 0)], 8)
    assert first.shape == (8,) and (first >= 0).all() and (first < 1).all()
    among = uniforms(0, [("charts-2", 0), ("charts-1", 1), ("charts-1", 0), ("charts-11", 0)], 8)
    assert (first == among[2]).all()
    assert (
        first == uniforms(0, [("charts-1", 0)], 20)[0, :8]
    ).all()  # a longer limit keeps the earlier numbers
    for other in (*among[[0, 1, 3]], *uniforms(1, [("charts-1", 0)], 8)):
        assert not np.isclose(first, other).any()


def test_random_numbers_are_uniform_and_free_of_correlation() -> None:
    table = uniforms(0, [(f"q{i}", j) for i in range(500) for j in range(4)], 4)
    assert kstest(table.ravel(), "uniform").pvalue > 0.01
    correlation = np.corrcoef(table.reshape(500, 16), rowvar=False) - np.eye(16)
    assert np.abs(correlation).max() < 0.2


@pytest.mark.parametrize("sampling", SETTINGS)
def test_processors_are_those_of_generate(sampling: Sampling, tmp_path: Path) -> None:
    """Given the same logits and history, our scores equal those from which ``generate`` samples."""
    torch.set_num_threads(1)
    model: Any
    model, processor = build(ModelSpec(width=16, layers=1), [f"w{i}" for i in range(60)], seed=1)
    model.eval()
    banned = banned_tokens(processor, len(processor.tokenizer))
    prompt = processor.tokenizer("<user> w1 w2 w2 w7 <assistant>", return_tensors="pt")
    torch.manual_seed(0)
    out = model.generate(
        input_ids=prompt["input_ids"].repeat(3, 1),
        attention_mask=prompt["attention_mask"].repeat(3, 1),
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        suppress_tokens=banned,
        max_new_tokens=6,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ours, size = processors(sampling, banned), prompt["input_ids"].shape[1]
    assert len(out.scores) >= 2
    for step, (theirs, raw) in enumerate(zip(out.scores, out.logits, strict=True)):
        scores: Any = raw.float().clone()
        for process in ours:
            scores = process(out.sequences[:, : size + step], scores)
        assert torch.equal(torch.isfinite(scores), torch.isfinite(theirs))
        finite = torch.isfinite(theirs)
        assert torch.allclose(scores[finite], theirs[finite], atol=1e-5)
        assert not torch.isfinite(scores[:, banned]).any()


@pytest.mark.parametrize("top_k", [1, 5, 50, 500])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("short", [0, 1024], ids=["by torch", "by NumPy"])
def test_top_k_and_top_p_together_are_those_of_transformers(
    top_k: int, top_p: float, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORT", short)
    scores: Any = 3 * torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    scores[:, ::4] = -torch.inf
    ids: Any = torch.zeros(200, 1, dtype=torch.long)
    theirs = TopPLogitsWarper(top_p)(ids, TopKLogitsWarper(top_k)(ids, scores))
    assert torch.equal(TopKTopP(top_k, top_p)(ids, scores), theirs)
