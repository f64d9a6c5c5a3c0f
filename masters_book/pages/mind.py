"""What would change our mind about each claim: what its comparison could detect, and what may confound it.

Everything follows from the study's tables, and from the limits that each claim states.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from masters.experiments.arms import arm
from masters_book.claims.comparisons import name_among
from masters_book.claims.table import shown, signed
from masters_book.figures.names import title_of
from masters_book.pages.first import Judged, notes, with_titles
from masters_book.pages.rendering import fill
from masters_book.study.study import Study

ARMS = ("treatment", "control")
# What an interval would have to show, by verdict, for claims that something improves accuracy.
OTHERWISE = {
    "supported": "an effect below the margin, or one that is not significant after the correction",
    "not supported": "an interval that reaches the margin",
    "reversed": "a loss below the margin, or one that is not significant after the correction",
    "undecided": "a narrower interval, all of it below the margin; or an effect of at least the margin, "
    "significant after the correction",
    "not tested": "a run of its arms",
}


def mind_page(judged: Judged | None, study: Study) -> str:
    """Return a fold per claim.

    Args:
        judged: the study's claims; None if it has measured none.
    """
    if judged is None:
        return fill("mind.md", claims=[])
    tried = study.tried
    claims = [
        {
            "row": row,
            "detects": _detects(row),
            "replicates": _replicates(row, study),
            "grid": [
                words for name in (row["treatment"], row["control"]) if (words := _edge(name, study, tried))
            ],
            "confounds": _confounds(row, judged, study),
            "otherwise": _otherwise(row),
        }
        for row in judged.claims.to_dict("records")
    ]
    return fill("mind.md", claims=claims)


def _detects(row: Mapping[Any, Any]) -> str:
    if not row["seeds"] > 0:
        return "Nothing yet: the arms were not run."
    if math.isnan(row["smallest"]):
        return "Nothing: both arms answer every question alike."
    smallest, unit = row["smallest"], row["unit"]
    detected = {
        "gain": f"{smallest:.1f} {unit}",
        "at least": f"A ratio of {smallest:.2f} would be found to exceed the margin",
        "at most": f"A growth of {smallest:.1f} {unit} would be found to stay below the margin",
        "no worse": f"A difference of {signed(smallest)} {unit} would be found to lie above minus the margin",
    }[row["kind"]]
    paper = "gives none"
    if not math.isnan(row["paper_effect"]):
        paper = f"has {shown(row['paper_effect'], unit)} {unit}"
    return (
        f"{detected}, four times out of five, before the correction for all claims. The margin is "
        f"{row['margin']:.2f} {unit}; the paper {paper}."
    )


def _replicates(row: Mapping[Any, Any], study: Study) -> str:
    if not row["seeds"] > 0:
        return "none"
    return f"{int(row['seeds'])}; {study.plan.seeds} are planned for the main arms"


def _edge(name: str, study: Study, tried: pd.DataFrame) -> str:
    """Return where the learning rate of an arm lies in the grid that it was chosen from; empty if untuned."""
    asked = name_among(name, study.plan.arms()) or name
    head = next((head for head, rest in study.plan.tuned.items() if asked in (head, *rest)), name)
    rates = tried.loc[tried["arm"] == head, "learning_rate"]
    chosen = tried.loc[(tried["arm"] == head) & tried["chosen"].astype(bool), "learning_rate"]
    if chosen.empty or rates.nunique() < 2:
        return ""
    rate = chosen.iloc[0]
    where = {rates.min(): "the smallest tried", rates.max(): "the largest tried"}.get(rate, "inside the grid")
    of = "" if head == name else f", chosen for {title_of(head)}"
    return f"{title_of(name)}: learning rate {rate:g}{of}, {where}"


def _tuned_apart(row: Mapping[Any, Any], study: Study) -> list[str]:
    """Return a sentence if tuning chose other settings for the two arms, beside what makes them arms."""
    settings = study.settings()
    names = [name_among(row[side], settings) for side in ARMS]
    specs = [arm(settings[name], study.profile) for name in names if name]
    if len(specs) < 2 or "nothing" in (spec.learn_from for spec in specs):
        return []
    chosen = ["learning_rate", *(["policy_weight", "beta"] if all(spec.rewards for spec in specs) else [])]
    first, second = ({field: getattr(spec, field) for field in chosen} for spec in specs)
    if not (differ := [field for field in chosen if first[field] != second[field]]):
        return []
    pair = [
        f"{title_of(row[side])} with "
        + ", ".join(f"{field.replace('_', ' ')} {of[field]:g}" for field in differ)
        for side, of in zip(ARMS, (first, second), strict=True)
    ]
    return [f"The arms were tuned apart: {'; '.join(pair)}."]


def _confounds(row: Mapping[Any, Any], judged: Judged, study: Study) -> list[str]:
    found = _tuned_apart(row, study)
    found += [f"{note[0].upper()}{note[1:]}." for note in notes(row, judged.compared)]
    if row["disagree"]:
        found.append(f"Greedy and sampled answers disagree: {with_titles(row['disagree'])}.")
    return [*found, row["limits"]]


def _otherwise(row: Mapping[Any, Any]) -> str:
    if row["kind"] == "gain" or row["verdict"] == "not tested":
        return OTHERWISE[row["verdict"]]
    below, above = {"no worse": ("below minus", "above minus"), "at most": ("above", "below")}.get(
        row["kind"], ("below", "above")
    )
    reach = f"that reaches {below}" if row["verdict"] == "supported" else above
    return f"an interval {reach} the margin of {row['margin']:.2f} {row['unit']}"
