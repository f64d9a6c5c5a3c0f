"""The tables of the imitation study: run what is missing, and judge by the criteria of the plan.

``data/results/imitation`` holds the tables, which git tracks; hidden states are in the cache. Any number of
sessions continue the work.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from scipy import stats

from masters.analysis.masked_teachers import mask_dose
from masters.claims.statistics import Interval, mean_interval
from masters.imitation import plan
from masters.imitation.distances import DIVERGENCES, TEACHER_WAYS, WHOLE, measure, missing_jobs
from masters.imitation.models import teacher_folder
from masters.runtime import workers
from masters.runtime.files import STUDY, write_intact
from masters.runtime.tables import COUNT, FRACTION, NUMBER, POSITIVE, TEXT, Number, Schema, Text, read_table
from masters.study.study import Study

FOLDER = STUDY.with_name("imitation")
KINDS = ("all", "text", "question")
_TEACHER = {"way": Text(choices=TEACHER_WAYS), "value": POSITIVE}
_STUDENT = {"layers": COUNT, "healed": COUNT}
_KIND = {"kind": Text(choices=KINDS)}
_EFFECT = {"change": NUMBER, "low": NUMBER, "high": NUMBER}
SCHEMAS = {
    "teachers.csv": Schema(
        _TEACHER
        | _KIND
        | {"dose": FRACTION, "entropy": POSITIVE, "argmax_changed": FRACTION, "loss": POSITIVE},
        ("way", "value", "kind"),
    ),
    "changes.csv": Schema(
        _STUDENT
        | _KIND
        | {"divergence": Text(choices=DIVERGENCES)}
        | _TEACHER
        | {"distance": POSITIVE, "draws": COUNT}
        | _EFFECT,
        ("layers", "healed", "kind", "divergence", "way", "value"),
    ),
    "controls.csv": Schema(
        _STUDENT
        | _KIND
        | {"control": Text(choices=("temperature", "random", "activation")), "ratio": FRACTION}
        | {"matched": Number(low=0), **_EFFECT},
        ("layers", "healed", "kind", "control", "ratio"),
    ),
    "mini.csv": Schema(
        {"replicate": COUNT, "model": TEXT, "ratio": FRACTION, "from_whole": FRACTION}
        | {"argmax_changed": FRACTION, "entropy": POSITIVE, "to_student": FRACTION},
        ("replicate", "model", "ratio"),
    ),
}
MINI_REPLICATES = 3


def read(name: str, folder: Path = FOLDER) -> pd.DataFrame:
    """Read a table, empty if it has not been measured.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / name
    if not path.is_file():
        return pd.DataFrame(columns=list(SCHEMAS[name].columns))
    return read_table(path, SCHEMAS[name])


def missing(folder: Path = FOLDER) -> list[str]:
    """Return the tables that are not there."""
    return [name for name in SCHEMAS if not (folder / name).is_file()]


def run(processes: int, folder: Path = FOLDER) -> None:
    """Compute and write the missing tables.

    Raises:
        ValueError: the teacher's package is not installed, or a file is damaged.
        OSError: the disk is full; finished work is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if set(missing(folder)) - {"mini.csv"}:
        teacher_folder()  # converted before the workers need it
        workers.run(missing_jobs(), processes, "models of the imitation study")
        of_teachers, distances = measure()
        for name, table in (
            ("teachers.csv", doses(of_teachers)),
            ("changes.csv", changes(distances)),
            ("controls.csv", controls(of_teachers, distances)),
        ):
            _write(folder, name, table)
    if "mini.csv" in missing(folder):
        _write(folder, "mini.csv", mini())


def _write(folder: Path, name: str, table: pd.DataFrame) -> None:
    with FileLock(folder / ".lock"):
        write_intact(folder / name, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def mini() -> pd.DataFrame:
    """Measure the same on the small vision-language models of the main study (:func:`mask_dose`)."""
    study, tables = Study("study"), []
    for replicate in range(MINI_REPLICATES):
        lab = study.lab(replicate)
        models = [name for name in lab.profile.ladder if name in ("mid", "large")]
        tables.append(mask_dose(lab, models, plan.RATIOS).assign(replicate=replicate))
    return pd.concat(tables, ignore_index=True)[list(SCHEMAS["mini.csv"].columns)]


# --- statistics -----------------------------------------------------------------------------------------


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


def _scores(rows: pd.DataFrame, divergence: str) -> np.ndarray:
    """Return the divergences of one student and teacher, ``(draws, sequences)``."""
    return rows.pivot(index="draw", columns="sequence", values=divergence).to_numpy()


def _percent(differences: np.ndarray, distance: float, kinds: np.ndarray) -> Interval:
    """Return the mean difference in percent of the distance, which counts as known."""
    return mean_interval(differences, kinds).scaled(100 / distance)


def changes(distances: pd.DataFrame) -> pd.DataFrame:
    """Return how each changed teacher's divergence to each student differs from the whole teacher's.

    In percent of the divergence to the whole teacher, with the interval over draws and held-out sequences.
    """
    found = []
    for kind, of_kind in _of_kinds(distances):
        for (layers, healed), of_student in of_kind.groupby(["layers", "healed"]):
            by_teacher = dict(list(of_student.groupby(["way", "value"], sort=False)))
            for divergence in DIVERGENCES:
                before = _scores(by_teacher[tuple(WHOLE)], divergence)
                kinds = of_student.drop_duplicates("sequence").sort_values("sequence")["kind"].to_numpy()
                for (way, value), rows in by_teacher.items():
                    if way == "whole":
                        continue
                    distance = float(before.mean())
                    effect = _percent(_scores(rows, divergence) - before, distance, kinds)
                    found.append(
                        {
                            "layers": layers,
                            "healed": healed,
                            "kind": kind,
                            "divergence": divergence,
                            "way": way,
                            "value": value,
                            "distance": distance,
                            "draws": len(before),
                            "change": effect.estimate,
                            "low": effect.low,
                            "high": effect.high,
                        }
                    )
    return pd.DataFrame(found)[list(SCHEMAS["changes.csv"].columns)]


def controls(of_teachers: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """Return the change in JSD under the magnitude mask minus that under each control, in percent.

    Temperature and random mask are taken at the dose of the magnitude mask: between the two measured values
    around it, the JSD of each sequence is interpolated linearly in the dose. Wanda is taken at the same
    ratio.
    """
    dose = of_teachers.groupby(["way", "value"])["dose"].mean()
    found = []
    for kind, of_kind in _of_kinds(distances):
        for (layers, healed), of_student in of_kind.groupby(["layers", "healed"]):
            jsd = {key: _scores(rows, "jsd") for key, rows in of_student.groupby(["way", "value"])}
            kinds = of_student.drop_duplicates("sequence").sort_values("sequence")["kind"].to_numpy()
            for ratio in plan.RATIOS:
                masked, distance = jsd["magnitude", ratio], float(jsd[tuple(WHOLE)].mean())
                for control in ("temperature", "random", "activation"):
                    if control == "activation":
                        matched, there = ratio, jsd[control, ratio]
                    else:
                        values = [WHOLE.value, *dose[control].sort_values().index]
                        curve = [0.0, *dose[control].sort_values()]
                        at = float(
                            np.interp(dose["magnitude", ratio], curve, np.arange(len(curve)), right=np.nan)
                        )
                        if np.isnan(at):
                            continue  # no measured value has so large a dose
                        low, share = min(int(at), len(curve) - 2), at - min(int(at), len(curve) - 2)
                        ends = [
                            jsd[tuple(WHOLE)] if place == 0 else jsd[control, values[place]]
                            for place in (low, low + 1)
                        ]
                        there = (1 - share) * ends[0] + share * ends[1]
                        first = 1.0 if control == "temperature" else 0.0
                        points = [first if place == 0 else values[place] for place in (low, low + 1)]
                        matched = (1 - share) * points[0] + share * points[1]
                    effect = _percent(masked - there, distance, kinds)
                    found.append(
                        {
                            "layers": layers,
                            "healed": healed,
                            "kind": kind,
                            "control": control,
                            "ratio": ratio,
                            "matched": matched,
                            "change": effect.estimate,
                            "low": effect.low,
                            "high": effect.high,
                        }
                    )
    return pd.DataFrame(found)[list(SCHEMAS["controls.csv"].columns)]


def direction(change: float, low: float, high: float) -> str:
    """Return the verdict on a change in percent, by the criterion "fall" of the plan."""
    if high < 0 and change < -plan.MARGIN:
        return "nearer"
    if low > 0 and change > plan.MARGIN:
        return "farther"
    if low >= -plan.MARGIN and high <= plan.MARGIN:
        return "no change"
    return "undecided"


def verdicts(folder: Path = FOLDER) -> pd.DataFrame:
    """Return one row per student: distance, change at the paper's mask ratio with interval, and verdicts.

    Raises:
        ValueError: a table is damaged.
    """
    table, compared = read("changes.csv", folder), read("controls.csv", folder)
    at = (table["way"] == "magnitude") & ((table["value"] - plan.R_MAX).abs() < 1e-9)
    rows = table[at & (table["divergence"] == "jsd") & (table["kind"] == "all")]
    effects = rows[["change", "low", "high"]].itertuples(index=False, name=None)
    rows = rows.assign(verdict=[direction(*effect) for effect in effects])
    for control in ("temperature", "random", "activation"):
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
