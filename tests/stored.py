"""All responses to some questions in one table."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from masters.data.questions import Questions
from masters.judges import Judge
from masters.judges.rule import RuleJudge
from masters.models.source import Source
from masters.responses.cached import generate, judged
from masters.responses.engines import Engine
from masters.settings import Sampling


def responses(
    source: Source,
    processor: Any,
    questions: Questions,
    wanted: Sequence[int],
    n: int,
    sampling: Sampling,
    seed: int,
    judge: Judge | None = None,
    counts: dict[str, int] | None = None,
    engine: Engine | None = None,
) -> pd.DataFrame:
    """Generate what is missing of the first ``n`` responses to each question, and return all, judged."""
    store = generate(source, processor, questions, wanted, n, sampling, seed, counts, engine)
    return pd.concat(judged(store, questions, wanted, n, judge or RuleJudge()), ignore_index=True)
