"""Map of a study: where masking and rewards help, beyond the paper's one setting.

An effect is the difference between two arms that differ in one thing, and for *rewards* in their tuned rates:

* *masking*: a masked against an unmasked teacher, without rewards (``masked``, ``naive_multi``);
* *masking under rewards*: the same with both rewards (``masters``, ``naive_rewards``);
* *rewards*: both rewards against none, at the same mask ratio (``masters``, ``masked``).

Along an axis one setting changes, in both arms alike: the ratio of teacher to student parameters, or the
first mask ratio. Each effect has its interval and the smallest detectable effect, which tells "no effect"
from "not detectable". The map gives no verdicts.
"""

from collections.abc import Iterator, Mapping

import pandas as pd

from masters.experiments.arms import split
from masters_book.claims.comparisons import SAME_RUN, paired_effect
from masters_book.claims.significance import minimum_detectable_effect
from masters_book.results.tables import COUNT, NUMBER, TEXT, Number, Schema, Text

PAIRS = {
    "masking": ("masked", "naive_multi"),
    "rewards": ("masters", "masked"),
    "masking under rewards": ("masters", "naive_rewards"),
}
EFFECTS = tuple(PAIRS)
AXES = {
    "gap": "teacher parameters / student parameters (student accuracy before training)",
    "r_max": "first mask ratio r_max",
}
MAP = Schema(
    {"axis": Text(choices=tuple(AXES)), "value": NUMBER, "effect": Text(choices=EFFECTS)}
    | {"treatment": TEXT, "control": TEXT}
    | dict.fromkeys(("points", "low", "high", "smallest"), NUMBER)
    | {"seeds": COUNT, "student_accuracy": Number(low=0, high=100, optional=True)},
    ("axis", "value", "effect", "treatment", "control"),
)
COLUMNS = list(MAP.columns)


def measure_map(
    predictions: pd.DataFrame,
    ladder: pd.DataFrame,
    r_max: float,
    resamples: int,
) -> pd.DataFrame:
    """Measure every effect whose two arms were run, along axes with more than one value.

    Args:
        predictions: greedy answers, as :func:`masters_book.claims.comparisons.paired_effect` takes them.
        ladder: columns ``model`` and ``parameters``, one row per model and replicate.
        r_max: of arms whose name does not state it.
        resamples: bootstrap resamples per interval.

    Returns:
        One row per axis (:data:`AXES`), effect (:data:`EFFECTS`) and value, in that order. ``points`` is the
        difference in greedy accuracy, ``low`` and ``high`` its 95 % interval, ``smallest`` the smallest
        effect detected four times out of five, ``seeds`` those that both arms have, ``student_accuracy`` the
        student's accuracy before training in percent (NaN if unknown).
    """
    names = {_spelled(str(arm)): str(arm) for arm in predictions["arm"].unique()}
    of_arm = dict(list(predictions.groupby("arm", observed=True)))
    size = ladder.drop_duplicates("model").set_index("model")["parameters"]
    places = pd.DataFrame(_pairs(set(names), size, r_max), columns=COLUMNS[:5])
    # The usual setting lies on every axis; where no other value was run, it says nothing about the axis.
    places = places[places.groupby(["axis", "effect"])["value"].transform("nunique") > 1]
    rows = []
    for axis, value, effect, treatment, control in places.itertuples(index=False, name=None):
        arms = [names[treatment], names[control]]
        if found := paired_effect(of_arm[arms[0]], of_arm[arms[1]], resamples):
            interval, seeds = found
            smallest = minimum_detectable_effect(interval)
            before = of_arm.get(_before(treatment))
            able = float("nan") if before is None else 100 * float(before["correct"].mean())
            rows.append([axis, value, effect, *arms, *interval[:3], smallest, seeds, able])
    table = pd.DataFrame(rows, columns=COLUMNS)
    rank = {name: place for place, name in enumerate([*AXES, *EFFECTS])}
    return table.sort_values(
        ["axis", "effect", "value"],
        key=lambda column: column.map(lambda value: rank.get(value, value)),
        ignore_index=True,
    )


def _spelled(arm: str) -> str:
    """Return the full name of an arm, such as ``masters+r_max=0.4`` for ``r_max=0.4``."""
    same = [name for name, others in SAME_RUN.items() if arm in others]
    return same[0] if same else _joined(*split(arm))


def _joined(base: str, values: Mapping[str, str]) -> str:
    """Return the full name of what :func:`split` returned, such as ``masters+r_max=0.4``."""
    return "+".join([base, *(f"{family}={value}" for family, value in values.items())])


def _before(arm: str) -> str:
    """Return the arm that evaluates an arm's student before training."""
    student = split(arm)[1].get("student")
    if student is None:
        return "base"
    return student if student in ("mid", "large") else f"base+student={student}"


def _pairs(arms: set[str], size: pd.Series, r_max: float) -> Iterator[tuple[str, float, str, str, str]]:
    """Yield (axis, value, effect, treatment, control) for every pair among ``arms``."""
    for effect, (treatment, control) in PAIRS.items():
        found = [("gap", "student", treatment, control), ("r_max", str(r_max), treatment, control)]
        if effect == "rewards":  # without a mask both arms have their own names
            found.append(("r_max", "0", "naive_rewards", "naive_multi"))
        for name in arms:
            base, values = split(name)
            if base != treatment or len(values) != 1:
                continue
            (axis, value), alike = *values.items(), _joined(control, values)
            if axis == "student":
                found.append(("gap", value, name, alike))
            elif axis == "r_max":
                # An unmasked control is the same at any ratio.
                found.append(("r_max", value, name, alike if effect == "rewards" else control))
        for axis, value, first, second in found:
            if arms.issuperset((first, second)):
                at = float(value) if axis == "r_max" else float(size["large"] / size[value])
                yield axis, at, effect, first, second
