"""How long models take to answer, one question at a time on one thread (Fig. 6)."""

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from masters.data.questions import Questions
from masters.experiments.arms import arm
from masters.experiments.lab import Lab
from masters.experiments.results import run_arms
from masters.experiments.run import run_folder
from masters.models.loading import load
from masters.responses.engines.local import generate
from masters.runtime.checksums import check
from masters.settings import Sampling


def answer_times(lab: Lab, arms: Sequence[str], questions: int) -> pd.DataFrame:
    """Return seconds per question of the arms' models at seed 0, one at a time, and tokens per answer."""
    run_arms(lab, arms)
    rows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in arms:
            spec = arm(name, lab.profile)
            saved = run_folder(lab, spec, 0) / "model"
            check(saved, f"delete {saved.parent}, and the run is repeated")
            model, processor = load(saved if saved.is_dir() else lab.folder(spec.student))
            longest = lab.profile.sampling.max_new_tokens
            timed = latency(model, processor, lab.questions("test"), questions, longest)
            rows.append({"arm": name} | timed)
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame(rows)


def latency(
    model: PreTrainedModel, processor: Any, questions: Questions, count: int, max_new_tokens: int
) -> dict[str, float]:
    """Return ``seconds_per_question`` and ``tokens`` per answer, greedy, one question at a time."""
    sampling = Sampling(max_new_tokens=max_new_tokens)

    def length(index: int) -> int:
        (answer,) = next(generate(model, processor, questions, [index], range(1), sampling, None))
        return len(answer.tokens)

    length(0)  # the first call warms up
    count, start = min(count, len(questions)), time.perf_counter()
    tokens = sum(map(length, range(count))) / count
    return {"seconds_per_question": (time.perf_counter() - start) / count, "tokens": tokens}
