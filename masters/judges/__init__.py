"""Judges of responses: the accuracy reward of Eq. 6 and every accuracy of the evaluation.

``RuleJudge`` compares the answer with the label by rule: fast, exact, and strict in doubt. ``LLMJudge`` calls
a language model twice, as the paper does: to explain and score, then to reduce the explanation to 0 or 1.
``EmbeddingJudge``, for comparison, measures the similarity of response and label.

Read in this order: :mod:`~masters.judges.normalization`, :mod:`~masters.judges.rule`,
:mod:`~masters.judges.scorers` (benchmarks and functions of your own), :mod:`~masters.judges.llm`,
:mod:`~masters.judges.embedding`, :mod:`~masters.judges.corpus` (human verdicts).

Departures from the paper: the prompts are in our own words. The judge sees question, label and response but
not the image; the paper does not say. An empty response gets 0 without a call. If the judge gives no readable
verdict, the verdict is ``None``, neither right nor wrong.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np


class Judge(Protocol):
    """Decides whether responses are right.

    Attributes:
        name: judge and version, part of every key of a stored verdict; changes whenever verdicts could.
    """

    name: str

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
        """Return 1 for right, 0 for wrong, None without a valid verdict; scorers also return shares."""


def accuracies(verdicts: Iterable[Any]) -> np.ndarray:
    """Return verdicts as accuracy rewards (Eq. 6) in float64, 0 where there is no verdict."""
    return np.nan_to_num(np.array(list(verdicts), dtype=np.float64))


def score_labeled(judge: Judge, questions: Any, labels: Any, responses: Any) -> list[Any]:
    """Return the verdict of each response, None where the label is empty: the question has no answer."""
    places = [place for place, label in enumerate(labels) if label]
    asked = [[column[place] for place in places] for column in map(list, (questions, labels, responses))]
    verdicts: list[Any] = [None] * len(labels)
    for place, verdict in zip(places, judge.score_many(*asked) if places else [], strict=True):
        verdicts[place] = verdict
    return verdicts
