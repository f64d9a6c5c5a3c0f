"""Pictures and scores for the task ``own_questions.yaml`` of lm-eval."""

from typing import Any

from masters.judges.rule import RuleJudge
from masters.own_data.pictures import open_picture


def pictures(row: dict[str, Any]) -> list[Any]:
    """Return the picture of a question; its path starts at the working directory."""
    return [open_picture({"path": row["image"], "bytes": None})]


def score(row: dict[str, Any], responses: list[str]) -> dict[str, float]:
    """Return the verdict of the rule; none counts as 0."""
    (verdict,) = RuleJudge().score_many([row["question"]], [row["answer"]], [responses[0]])
    return {"score": float(verdict or 0)}
