"""A shared prompt gives the same responses as a copy per response, in every model family."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import families
import numpy as np
import pytest
import torch
from transformers import DynamicCache

from masters.responses.engines import Response, shared_prompt
from masters.responses.engines.local import generate
from masters.settings import Sampling

torch.set_num_threads(1)
N, LIMIT = 5, 12


class Tokenizer:
    """The part of a tokenizer that generation needs, for models without words."""

    image_token_id, video_token_ids = families.IMAGE, [families.VIDEO, families.START, families.STOP]
    added_tokens_encoder = MappingProxyType({})

    def __init__(self, end: int) -> None:
        self.eos_token_id = end

    def __len__(self) -> int:
        return families.VOCABULARY

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def write(here: families.Setting, folder: Path, end: int = families.STOP, seed: int = 0) -> list[Response]:
    processor: Any = SimpleNamespace(tokenizer=Tokenizer(end))
    questions = here.questions(folder)
    wanted = range(len(here.prompts))
    sampling = Sampling(max_new_tokens=LIMIT)
    batches = generate(here.model, processor, questions, wanted, range(N), sampling, seed)
    written = [response for batch in batches for response in batch]
    return sorted(written, key=lambda response: (response.question, response.index))


def alike(some: list[Response], others: list[Response]) -> None:
    for a, b in zip(some, others, strict=True):
        assert (a.question, a.index, a.tokens) == (b.question, b.index, b.tokens)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def frequent(responses: list[Response]) -> int:
    """Return a token that, used as end token, ends many but not all responses early."""
    counts = Counter(token for response in responses for token in set(response.tokens))
    return next(token for token, count in counts.most_common() if count < 0.8 * len(responses))


@pytest.mark.parametrize("family", [*families.FAMILIES, "gemma3"])
def test_log_probabilities_are_those_of_the_model_on_each_response_alone(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = families.setting(family)
    end = frequent(write(here, tmp_path / "first"))
    monkeypatch.setattr(shared_prompt, "BLOCK", 3)
    used = []
    whole = shared_prompt.SharedPrompt
    monkeypatch.setattr(shared_prompt, "SharedPrompt", lambda *given: used.append(whole(*given)) or used[-1])
    responses = write(here, tmp_path / "second", end)
    assert bool(used) == (family != "gemma3")  # it has a sliding window
    groups = [responses[start : start + N] for start in range(0, len(responses), N)]
    read = replace(here, responses=[[np.array(r.tokens) for r in group] for group in groups])
    lengths = set()
    for question, group in enumerate(groups):
        for j, response in enumerate(group):
            with torch.no_grad():
                alone = read.alone(question, j).log_softmax(-1)
            expected = alone.gather(1, torch.tensor(response.tokens)[:, None])[:, 0]
            assert response.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
            lengths.add(len(response.tokens))
    assert len(lengths) > 3, "otherwise no response leaves the batch early"
    assert all(len(cache._slots) < len(groups) * N for cache in used)


def test_copies_of_a_prompt_give_the_same_responses(tmp_path: Path) -> None:
    here = families.setting("llava")
    once = write(here, tmp_path / "once")
    here.model.set_attn_implementation({"text_config": "eager"})
    try:
        copied = write(here, tmp_path / "copied")
    finally:
        here.model.set_attn_implementation({"text_config": "sdpa"})
    alike(once, copied)


def test_the_models_own_attention_computes_the_prompt_and_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = families.setting("llava")
    text, seen = here.model.config.get_text_config(), []
    forward = here.model.model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["input_ids"].shape[1], text._attn_implementation))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(here.model.model, "forward", watched)
    with pytest.raises(KeyboardInterrupt):
        write(here, tmp_path / "questions")
    prompt, *written = seen
    assert prompt[0] > 1 and prompt[1] == "sdpa"
    assert written == [(1, shared_prompt.NAME)] * 2
    assert text._attn_implementation == "sdpa"


def test_a_prompt_is_not_copied_for_its_responses() -> None:
    prompts = DynamicCache()
    keys, values = prompts.update(torch.randn(2, 1, 7, 4), torch.randn(2, 1, 7, 4), 0)
    for n in (1, 8):
        cache = shared_prompt.SharedPrompt(prompts, torch.ones(2, 7), n)
        layer: Any = cache.layers[0]
        assert layer.prompt_keys.data_ptr() == keys.data_ptr()
        assert layer.prompt_values.data_ptr() == values.data_ptr()
        assert layer.keys.shape == layer.values.shape == (2 * n, 1, shared_prompt.BLOCK, 4)
