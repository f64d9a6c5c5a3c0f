"""Statistics of the imitation study: changes in divergence, controls at the same dose, verdicts of the plan.

Changes are in percent of a divergence that counts as known; intervals cover draws (or seeds) and held-out
sequences (:mod:`masters_book.claims.statistics`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from masters_book.claims.statistics import mean_interval
from masters_book.imitation import plan
from masters_book.imitation.distances import DIVERGENCES, WHOLE
from masters_book.imitation.tables import CONTROLS, FOLDER, KINDS, SCHEMAS, tables

COMPARISONS = (*((arm, "whole") for arm in plan.ARMS if arm != "whole"), ("progressive", "step length"))


def _of_kinds(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(kind, table if kind == "all" else table[table["kind"] == kind]) for kind in KINDS]


def doses(of_teachers: pd.DataFrame) -> pd.DataFrame:
    """Return the means over sequences of each teacher's facts, per kind of held-out text."""
    facts = ["dose", "entropy", "argmax_changed", "loss"]
    tables = [
        rows.groupby(["way", "value"], sort=False)[facts].mean().reset_index().assign(kind=kind)
        for kind, rows in _of_kinds(of_teachers)
    ]
    return pd.concat(tables, ignore_index=True)[list(SCHEMAS["teachers.csv"].columns)]


def _students(distances: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame, np.ndarray]]:
    """Yield each student, per kind of held-out text: its fields, its rows, the kind of each sequence."""
    for kind, of_kind in _of_kinds(distances):
        for (layers, healed), rows in of_kind.groupby(["layers", "healed"]):
            kinds = rows.drop_duplicates("sequence").sort_values("sequence")["kind"].to_numpy()
            yield {"layers": layers, "healed": healed, "kind": kind}, rows, kinds


def _scores(rows: pd.DataFrame, divergence: str) -> dict[tuple[str, float], np.ndarray]:
    """Return the divergences of one student per teacher, ``(draws, sequences)``."""
    groups: Any = rows.groupby(["way", "value"], sort=False)
    return {
        (way, value): some.pivot(index="draw", columns="sequence", values=divergence).to_numpy()
        for (way, value), some in groups
    }


def _percent(differences: np.ndarray, distance: float, kinds: np.ndarray) -> dict[str, float]:
    """Return the mean difference and its interval in percent of a distance that counts as known."""
    change, low, high, _ = mean_interval(differences, kinds).scaled(100 / distance)
    return {"change": change, "low": low, "high": high}


def changes(distances: pd.DataFrame) -> pd.DataFrame:
    """Return how each changed teacher's divergence to each student differs from the whole teacher's.

    Args:
        distances: the second table of :func:`masters_book.imitation.distances.measure`.
    """
    found = []
    for student, rows, kinds in _students(distances):
        for divergence in DIVERGENCES:
            scores = _scores(rows, divergence)
            whole = scores.pop(WHOLE)
            distance = float(whole.mean())
            of_student = student | {"divergence": divergence, "distance": distance, "draws": len(whole)}
            for (way, value), there in scores.items():
                effect = _percent(there - whole, distance, kinds)
                found.append(of_student | {"way": way, "value": value, **effect})
    return pd.DataFrame(found)[list(SCHEMAS["changes.csv"].columns)]


def controls(of_teachers: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """Return the change in JSD under the magnitude mask minus that under each control.

    Temperature and random mask are taken at the dose of the magnitude mask: between the two measured values
    around it, the JSD of each sequence is interpolated linearly in the dose. Wanda is taken at the same
    ratio. A control that nowhere has so large a dose is left out.
    """
    dose = of_teachers.groupby(["way", "value"])["dose"].mean()
    found = []
    for student, rows, kinds in _students(distances):
        jsd = _scores(rows, "jsd")
        distance = float(jsd[WHOLE].mean())
        for ratio in plan.RATIOS:
            for control in CONTROLS:
                if control == "activation":
                    matched, there = ratio, jsd[control, ratio]
                elif dose["magnitude", ratio] <= dose[control].max():
                    matched, there = _at_dose(dose["magnitude", ratio], control, dose[control], jsd)
                else:
                    continue
                effect = _percent(jsd["magnitude", ratio] - there, distance, kinds)
                found.append(student | {"control": control, "ratio": ratio, "matched": matched, **effect})
    return pd.DataFrame(found)[list(SCHEMAS["controls.csv"].columns)]


def _at_dose(
    wanted: float, control: str, dose: pd.Series, jsd: Mapping[tuple[str, float], np.ndarray]
) -> tuple[float, np.ndarray]:
    """Return the value of a control with a dose, and its divergences, both interpolated.

    Args:
        wanted: the dose.
        control: temperature or random.
        dose: dose per value of the control.
        jsd: per teacher.
    """
    dose = dose.sort_values()
    nothing = 1.0 if control == "temperature" else 0.0  # the value that changes nothing
    points = [(0.0, nothing, jsd[WHOLE])]
    values: Any = dose.items()
    points += [(at, value, jsd[control, value]) for value, at in values]
    above = next(place for place in range(1, len(points)) if points[place][0] >= wanted)
    (low, first, before), (high, last, after) = points[above - 1 : above + 1]
    share = (wanted - low) / (high - low)
    return (1 - share) * first + share * last, (1 - share) * before + share * after


def effects(learned: pd.DataFrame) -> pd.DataFrame:
    """Return how much nearer to the whole teacher each arm's students end than those of the control arm.

    Args:
        learned: rows of the runs that count.

    Returns:
        One row per start, comparison and step whose runs are all finished: start, arm, control, step,
        ``before`` and ``after`` (JSD of the control arm's student to the whole teacher, at first and at this
        step), change, low, high in percent of ``after``, and ``loss`` and ``loss_control``, of the next token
        under the students of both arms.
    """
    found = []
    for start in plan.STARTS:
        of_start = learned[learned["start"] == start]
        for arm, control in COMPARISONS:
            pair = of_start[of_start["arm"].isin([arm, control])]
            if (pair.groupby("arm")["seed"].nunique().reindex([arm, control]) != plan.SEEDS).any():
                continue
            for step in plan.LOOKS:
                at = pair[pair["step"] == step]
                table = {
                    name: rows.pivot(index="seed", columns="sequence", values="jsd").to_numpy()
                    for name, rows in at.groupby("arm")
                }
                kinds = at.drop_duplicates("sequence").sort_values("sequence")["kind"].to_numpy()
                after = float(table[control].mean())
                losses = at.groupby("arm")["loss"].mean()
                first = pair[(pair["step"] == 0) & (pair["arm"] == control)]
                found.append(
                    {"start": start, "arm": arm, "control": control, "step": step, "after": after}
                    | {"before": float(first["jsd"].mean())}
                    | _percent(table[arm] - table[control], after, kinds)
                    | {"loss": float(losses[arm]), "loss_control": float(losses[control])}
                )
    return pd.DataFrame(found)


def direction(change: float, low: float, high: float) -> str:
    """Return the verdict on a change in percent, by the criterion "fall" of the plan."""
    if high < 0 and change < -plan.MARGIN:
        return "nearer"
    if low > 0 and change > plan.MARGIN:
        return "farther"
    if low >= -plan.MARGIN and high <= plan.MARGIN:
        return "no change"
    return "undecided"


def helps(found: pd.DataFrame) -> list[str]:
    """Return the verdict of each row of :func:`effects`, by the criterion "help" of the plan.

    A row against the arm ``whole`` says whether the arm helps, a row against ``step length`` what a help
    comes from. Rows before the last step, and causes of what did not help, have no verdict.
    """
    words = {"nearer": "helps", "farther": "harms", "no change": "no help", "undecided": "undecided"}
    rows: list[dict[Any, Any]] = found.to_dict("records")
    towards = [direction(row["change"], row["low"], row["high"]) for row in rows]
    judged = [word if row["step"] == plan.STEPS else "" for row, word in zip(rows, towards, strict=True)]
    helped = {
        (row["start"], row["arm"])
        for row, word in zip(rows, judged, strict=True)
        if row["control"] == "whole" and word == "nearer"
    }
    said = []
    for row, word in zip(rows, judged, strict=True):
        if row["control"] == "whole":
            said.append(words.get(word, ""))
        elif word and (row["start"], row["arm"]) in helped:
            said.append("by its target" if word == "nearer" else "not shown to be by its target")
        else:
            said.append("")
    return said


def verdicts(folder: Path = FOLDER) -> pd.DataFrame:
    """Return one row per student: distance, change at the paper's mask ratio with interval, and verdicts.

    Raises:
        ValueError: a table is damaged.
    """
    table, compared = tables(folder).read("changes.csv"), tables(folder).read("controls.csv")
    at = (table["way"] == "magnitude") & ((table["value"] - plan.R_MAX).abs() < 1e-9)
    rows = table[at & (table["divergence"] == "jsd") & (table["kind"] == "all")]
    effects = rows[["change", "low", "high"]].itertuples(index=False, name=None)
    rows = rows.assign(verdict=[direction(*effect) for effect in effects])
    for control in CONTROLS:
        of = compared[(compared["control"] == control) & (compared["kind"] == "all")]
        of = of[(of["ratio"] - plan.R_MAX).abs() < 1e-9].set_index(["layers", "healed"])
        rows = rows.join(
            of[["matched", "change", "low", "high"]].add_prefix(f"{control}_"), on=["layers", "healed"]
        )
    return rows.sort_values("distance").reset_index(drop=True)


def trend(students: pd.DataFrame) -> tuple[float, float]:
    """Return the Spearman correlation of distance and change over the students, and its p-value."""
    result = stats.spearmanr(students["distance"], students["change"])
    return float(result.statistic), float(result.pvalue)
