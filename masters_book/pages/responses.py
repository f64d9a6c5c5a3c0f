"""The page of responses: questions with their pictures, all responses, verdicts, rewards and advantages.

The responses are those that training with Masters reads in its first stage
(:mod:`masters_book.analysis.groups`). A bounded number of questions is shown: the first of each task, the
same number per task, in an order of the pool drawn with a fixed seed. The page is complete without
JavaScript; ``book/_static/masters.js`` adds the filters.
"""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from masters.data.labels import accepted
from masters.data.questions import Questions
from masters.experiments.arms import arm
from masters.experiments.curriculum import all_stages, wanted_responses
from masters.experiments.evaluation import register
from masters.experiments.lab import Lab
from masters.experiments.response_plan import status
from masters.own_data.pictures import open_picture
from masters_book.analysis.groups import rewarded_groups
from masters_book.pages.rendering import fill
from masters_book.results.intact import read_json

FILE = "responses.json"
QUESTIONS = 48  # in all
SEED = 0
SIDE = 96  # pixels, longest side of a picture
PICTURES = 4  # per question
LONGEST = 400  # characters of a text
SPREADS = {
    "differs": "the accuracy reward differs",
    "equal": "all responses have the same accuracy reward",
    "flat": "no spread in both rewards together",
}


def stored_groups(lab: Lab) -> dict[str, Any] | None:
    """Return the questions to show with their groups of responses; None unless all responses are stored.

    Log-probabilities that the rewards need are computed if they are missing.

    Raises:
        ValueError: a file of the store is damaged.
    """
    spec = arm("masters", lab.profile)
    wanted = wanted_responses(spec, all_stages(spec)[0])
    if any(status(lab, each, lab.pool).missing for each in wanted):
        return None
    groups, questions = rewarded_groups(lab), lab.questions("train")
    found, shown = groups.groupby("question", sort=False), chosen(questions.table.iloc[lab.pool])
    teachers = groups[groups["source"] != spec.student]
    return {
        "profile": lab.profile.name,
        "teacher": str(teachers["source"].iloc[0]) if len(teachers) else "",
        "ratio": float(teachers["ratio"].iloc[0]) if len(teachers) else 0.0,
        "pool": len(lab.pool),
        "seed": SEED,
        "questions": [
            _question(questions, index, found.get_group(name), spec.student) for index, name in shown.items()
        ],
    }


def chosen(pool: pd.DataFrame) -> pd.Series:
    """Return the ids of the questions to show by their index: the first of each task, in a seeded order.

    Args:
        pool: the questions that were answered, with their ``id`` and ``task``.
    """
    order = pool.iloc[np.random.default_rng(SEED).permutation(len(pool))]
    each = max(1, QUESTIONS // pool["task"].nunique())
    first = order.groupby("task", sort=False).head(each)
    return first.sort_values("task", kind="stable")["id"].head(QUESTIONS)


def responses_page(path: Path, cannot_show: str) -> str:
    """Return the page's body.

    Args:
        path: file that :func:`stored_groups` fills; without it, the page says so.
        cannot_show: what the profile of the run cannot show.

    Raises:
        ValueError: the file is damaged.
    """
    found = read_json(path) if path.is_file() else None
    questions = found["questions"] if found else []
    responses = [each for question in questions for each in question["responses"]]
    return fill(
        "responses.md",
        found=found,
        responses=len(responses),
        right=np.mean([each["accuracy"] for each in responses]) if responses else None,
        cannot_show=cannot_show,
        choices={
            "task": sorted({question["task"] for question in questions}),
            "source": sorted({each["source"] for each in responses}),
            "verdict": sorted({each["verdict"] for each in responses}),
            "register": sorted({each["register"] for each in responses}),
        },
        spreads=SPREADS,
    )


def _question(questions: Questions, index: Any, group: pd.DataFrame, student: str) -> dict[str, Any]:
    about, files = questions.table.loc[index], questions.images(int(index))
    flat = bool(group["flat"].all())
    return {
        "task": str(about["task"]),
        "question": _short(about["question"]),
        "answer": _short(" | ".join(accepted(about["answer"]))),
        "pictures": [_small(file) for file in files[:PICTURES]],
        "more": max(0, len(files) - PICTURES),
        "spread": "flat" if flat else "equal" if group["correct"].nunique() == 1 else "differs",
        "responses": [
            {
                "source": "student" if row["source"] == student else "teacher",
                "text": _short(row["text"]),
                "register": register(row["text"]),
                "verdict": {0: "wrong", 1: "correct"}.get(row["correct"], "in part"),
                "accuracy": float(row["correct"]),
                "distillation": float(row["reward_distillation"]),
                "advantage": float(row["advantage"]),
            }
            for row in group.to_dict("records")
        ],
    }


def _short(text: Any) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."


def _small(file: bytes) -> str:
    """Return a picture as the address of a small WebP file."""
    picture = open_picture({"bytes": file, "path": None})
    picture.thumbnail((SIDE, SIDE))
    small = io.BytesIO()
    picture.save(small, "WEBP", quality=80, method=6)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
