"""Judges of responses: the accuracy reward of Eq. 6 and every accuracy of the evaluation.

``RuleJudge`` compares the answer with the label by rule: fast, exact, and strict in doubt. ``LLMJudge`` calls
a language model twice, as the paper does: to explain and score, then to reduce the explanation to 0 or 1.
``EmbeddingJudge``, for comparison, measures the similarity of response and label.

Read in this order: :mod:`~masters.judges.rule`, :mod:`~masters.judges.llm`, :mod:`~masters.judges.embedding`,
:mod:`~masters.judges.corpus` (human verdicts).

Departures from the paper: the prompts are in our own words. The judge sees question, label and response but
not the image; the paper does not say. An empty response gets 0 without a call. If the judge gives no readable
verdict, the verdict is ``None``, neither right nor wrong.
"""

import json
from collections.abc import Sequence
from typing import Any, Protocol


class Judge(Protocol):
    """Decides whether responses are right.

    Attributes:
        name: judge and version, part of every key of a stored verdict; changes whenever verdicts could.
    """

    name: str

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
        """Return 1 for right, 0 for wrong and None without a valid verdict, per response."""


def triples(
    questions: Sequence[str], labels: Sequence[str], responses: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Zip questions, labels and responses; raise ``ValueError`` if their numbers differ."""
    if not len(questions) == len(labels) == len(responses):
        raise ValueError(
            f"{len(questions)} questions, {len(labels)} labels and {len(responses)} responses to judge; "
            "give one of each per verdict"
        )
    return list(zip(questions, labels, responses, strict=True))


def accepted(label: str) -> list[str]:
    """Return the answers that a label accepts: the texts of a JSON array, else the label itself."""
    try:
        answers = json.loads(label) if label.startswith("[") else None
    except ValueError:
        return [label]
    several = isinstance(answers, list) and answers and all(isinstance(answer, str) for answer in answers)
    return list(answers) if several and answers else [label]
