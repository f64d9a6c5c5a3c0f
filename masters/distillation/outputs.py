"""What a run writes: answers and scores in ``eval/``, and the student's folder with its model card."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy.stats import binomtest, sem, t

from masters.distillation.run_file import RunFile
from masters.judges import accuracies
from masters.runtime.files import write_atomic


class Interval(NamedTuple):
    """A mean over questions and its 95 % interval; the scores are in [0, 1]."""

    mean: float
    low: float
    high: float


def mean_interval(values: np.ndarray) -> Interval:
    """Return the mean of ``(questions,)`` values with Student's t interval."""
    mean = float(values.mean())
    half = float(t.ppf(0.975, len(values) - 1) * sem(values)) if len(values) > 1 else 0.0
    return Interval(mean, mean - half, mean + half)


def scores(frames: dict[str, pd.DataFrame]) -> dict[str, Interval]:
    """Return each model's mean score with its 95 % interval over questions, and the student's gain.

    A judgment without a verdict counts as 0. Questions without a label are left out. If every answer is
    right or wrong the interval is Wilson's, which has a width where all are wrong too.

    Args:
        frames: the answers of ``before``, ``after`` and the teachers.
    """
    found: dict[str, Interval] = {}
    values = {name: score_values(frame) for name, frame in frames.items()}
    for name, value in values.items():
        if value.size and set(np.unique(value)) <= {0, 1}:
            of = binomtest(int(value.sum()), value.size).proportion_ci(method="wilson")
            found[name] = Interval(float(value.mean()), of.low, of.high)
        elif value.size:
            found[name] = mean_interval(value)
    if "before" in found and "after" in found:
        found["gain"] = mean_interval(values["after"] - values["before"])
    order = ["before", "after", "gain"]
    return {name: found[name] for name in [*order, *sorted(found.keys() - set(order))] if name in found}


def mean_score(frame: pd.DataFrame) -> float:
    """Return the mean score of :func:`answers` as :func:`scores` counts it; NaN without labels."""
    return float(score_values(frame).mean())


def score_values(frame: pd.DataFrame) -> np.ndarray:
    """Return the score of each answer to a question with a label, ``(questions,)``."""
    labeled = frame[frame["label"] != ""]
    return accuracies(labeled["score"])


def score_line(title: str, interval: Interval, questions: int, unit: str = "%") -> str:
    """Return a score as a line."""
    value, low, high = (100 * x for x in interval)
    return f"{title}: {value:.1f} {unit} (95 % interval {low:.1f} to {high:.1f}, {questions} questions)"


def score_lines(found: dict[str, Interval], questions: int) -> list[str]:
    """Return :func:`scores` as lines."""
    units = {name: "points" if name == "gain" else "%" for name in found}
    return [score_line(name, interval, questions, units[name]) for name, interval in found.items()]


def write_scores(folder: Path, found: dict[str, Interval], questions: int) -> None:
    """Write ``scores.json``: estimate, low and high of each model, in [0, 1]."""
    named = {name: {"score": i.mean, "low": i.low, "high": i.high} for name, i in found.items()}
    write_atomic(folder / "scores.json", json.dumps({"questions": questions, **named}, indent=2) + "\n")


def resolved(run: RunFile) -> str:
    """Return the run file with every parameter, as YAML, without passwords in addresses."""
    content = run.model_dump(mode="json", exclude={"file"})
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return re.sub(r"(https?://)[^/@\s]+@", r"\1", text)


CARD = """---
base_model: {base}
library_name: transformers
pipeline_tag: image-text-to-text
tags: [distillation, masters]
---

# {name}

{base}, distilled with the method *{method}* of Masters
([arXiv 2512.22238](https://arxiv.org/abs/2512.22238)) from {teachers}, on {questions:,} questions.{changed}

{results}

Scores are of greedy answers, judged by `{reward}`. The intervals cover the questions drawn, not other
training runs.

## Load it

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{place}")
processor = AutoProcessor.from_pretrained("{place}")
```

## Settings

```yaml
{settings}```
"""


def card(
    run: RunFile,
    teachers: Sequence[str],
    questions: int,
    found: dict[str, Interval],
    evaluated: int,
    changed: float = math.nan,
) -> str:
    """Return the model card of the student.

    Args:
        teachers: those that taught; the file may name more.
        questions: training questions.
        found: :func:`scores`; empty without evaluation.
        evaluated: questions of the evaluation.
        changed: share of the weights that differ from the base, if known.
    """
    lines = [f"- {line}" for line in score_lines(found, evaluated)]
    share = f" {100 * changed:.1f} % of the stored weights differ from it." if changed == changed else ""
    return CARD.format(
        base=run.student.partition("@")[0],
        name=run.output.name,
        place=run.training.push_to_hub or f"{run.output.name}/model",
        method=run.method,
        teachers=", then ".join(teachers) or "labels alone",
        questions=questions,
        changed=share,
        results="\n".join(lines) or "Not evaluated.",
        reward=run.reward if isinstance(run.reward, str) else run.reward["llm"].model,
        settings=resolved(run),
    )
