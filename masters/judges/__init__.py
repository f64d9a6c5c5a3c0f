"""Who decides that a response is right (the accuracy reward of Eq. 6, and every score of the evaluation).

One idea: a response is right if it commits to exactly one answer and that answer is the label. ``RuleJudge``
finds the answer by rule: fast, exact, and strict wherever a rule cannot tell. ``LLMJudge`` asks a language
model twice, as the paper does: to explain and score, then to reduce the explanation to a bare 0 or 1. Empty,
repetitive, irrelevant and several-answers-at-once responses get 0. ``EmbeddingJudge`` compares the meaning of
response and label as a small encoder sees it, for comparison.

All have a ``name`` that belongs in every key a verdict is cached under: it changes when verdicts could.

Departures from the paper: the prompts are in our own words; the judge sees question, label and response but
not the image, on which the paper is silent; an empty response is scored 0 without a call; a judge that gives
no readable verdict yields ``None``, which is neither right nor wrong.
"""

from typing import Any, Protocol


class Judge(Protocol):
    """Who decides that a response is right."""

    @property
    def name(self) -> str:
        """Names the judge and its version; verdicts are kept under it."""

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
        """1 right, 0 wrong, None where the judge gave no valid verdict."""
