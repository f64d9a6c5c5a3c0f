"""Map of a study: where masking and rewards help, beyond the paper's one setting.

An effect is the difference between two arms that differ in one thing:

* *masking*: a masked against an unmasked teacher, without rewards (``masked``, ``naive_multi``);
* *masking under rewards*: the same with both rewards (``masters``, ``naive_rewards``);
* *rewards*: both rewards against none, under the mask (``masters``, ``masked``);
* *rewards at one learning rate*: the same, with the control at the treatment's learning rate. Arms are tuned
  one by one, so part of the effect *rewards* may come from a different learning rate.

Along an axis one setting changes, in both arms alike. Each effect has its interval and the smallest
detectable effect, which tells "no effect" from "not detectable". The map gives no verdicts.
"""

from collections.abc import Iterator, Mapping

import pandas as pd

from masters.experiments.arms import joined, split
from masters.settings import Distillation
from masters_book.claims.comparisons import SAME_RUN, paired_effect
from masters_book.claims.significance import minimum_detectable_effect
from masters_book.results.tables import COUNT, NUMBER, TEXT, Number, Schema, Text

PAIRS = {
    "masking": ("masked", "naive_multi"),
    "rewards": ("masters", "masked"),
    "masking under rewards": ("masters", "naive_rewards"),
}
AT_ONE_RATE = "rewards at one learning rate"
EFFECTS = (*PAIRS, AT_ONE_RATE)
AXES = {
    "gap": "teacher parameters / student parameters (student accuracy before training)",
    "r_max": "first mask ratio r_max",
    "r_max_mid": "first mask ratio r_max of the mid teacher",
    "learning_rate": "learning rate",
    "steps": "training steps",
    "label_noise": "fraction of wrong labels",
    "teacher_temperature": "teacher temperature",
}
ALIKE = ("learning_rate", "steps", "teacher_temperature")  # like the student, in the names of both arms
NEUTRAL = {"label_noise": "0", "teacher_temperature": "1"}  # where the arm's name states none
LINEAR = ("r_max", "r_max_mid", "label_noise")  # the other axes are logarithmic
MID, MID_UNMASKED = "masters+teachers=mid", "masters+teachers=mid+r_max=0.0"
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
    usual: Distillation,
    learning_rates: Mapping[str, float],
    resamples: int,
) -> pd.DataFrame:
    """Measure every effect whose two arms were run, along axes with more than one value.

    Args:
        predictions: greedy answers, as :func:`masters_book.claims.comparisons.paired_effect` takes them.
        ladder: columns ``model`` and ``parameters``, one row per model and replicate.
        usual: settings of arms whose name does not state them.
        learning_rates: learning rate by arm.
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
    rates = {name: learning_rates[arm] for name, arm in names.items()}
    at = [*_pairs(set(names), size, usual), *_at_one_rate(rates, size)]
    places = pd.DataFrame(at, columns=COLUMNS[:5])
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
    return same[0] if same else joined(*split(arm))


def _before(arm: str) -> str:
    """Return the arm that evaluates an arm's student before training."""
    student = split(arm)[1].get("student")
    if student is None:
        return "base"
    return student if student in ("mid", "large") else f"base+student={student}"


def _pairs(
    arms: set[str], size: pd.Series, usual: Distillation
) -> Iterator[tuple[str, float, str, str, str]]:
    """Yield (axis, value, effect, treatment, control) for every pair among ``arms``."""
    neutral = {"gap": "large/student", "r_max": str(usual.r_max), "steps": str(usual.steps)} | NEUTRAL
    for effect, (treatment, control) in PAIRS.items():
        found = [(axis, at, treatment, control) for axis, at in neutral.items()]
        if effect == "rewards":  # without a mask both arms have their own names
            found.append(("r_max", "0", "naive_rewards", "naive_multi"))
        of_mid = effect == "masking under rewards"
        if of_mid:
            found.append(("gap", "mid/student", MID, MID_UNMASKED))
        for name in arms:
            base, values = split(name)
            if base != treatment:
                continue
            alike = joined(control, values)
            match values:
                case {"student": student, **others} if set(others) <= {"teachers"}:
                    found.append(("gap", f"{others.get('teachers', 'large')}/{student}", name, alike))
                case {"teachers": "mid", **others} if of_mid and set(others) <= {"r_max"}:
                    if name != MID_UNMASKED:
                        found.append(("r_max_mid", others.get("r_max", str(usual.r_max)), name, MID_UNMASKED))
                case {"label_noise": value, **others} if not others:
                    # Wrong labels change only rewards: an arm without rewards is the same at any noise.
                    found.append(("label_noise", value, name, alike if effect != "rewards" else control))
                case {"r_max": value, **others} if not others:
                    # An unmasked control is the same at any ratio.
                    found.append(("r_max", value, name, alike if effect == "rewards" else control))
                case _ if len(values) == 1 and (axis := next(iter(values))) in ALIKE:
                    found.append((axis, values[axis], name, alike))
        for axis, value, first, second in found:
            if not arms.issuperset((first, second)):
                continue
            if axis != "gap":
                yield axis, float(value), effect, first, second
            elif set(models := value.split("/")) <= set(size.index):
                teacher, student = models
                yield axis, float(size[teacher] / size[student]), effect, first, second


def _at_one_rate(rates: Mapping[str, float], size: pd.Series) -> Iterator[tuple[str, float, str, str, str]]:
    """Yield the pairs of *rewards* that share one learning rate, over the gap."""
    for name in rates:
        base, values = split(name)
        if (
            base != "masked"
            or values.pop("learning_rate", None) is None
            or set(values) - {"student", "teachers"}
        ):
            continue
        student, teacher = values.get("student", "student"), values.get("teachers", "large")
        rewarded = joined("masters", values)
        if rates.get(rewarded) == rates[name] and {teacher, student} <= set(size.index):
            yield "gap", float(size[teacher] / size[student]), AT_ONE_RATE, rewarded, name
