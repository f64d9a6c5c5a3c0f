"""The paper's fifteen claims as data, and the rule that turns a measured difference into a verdict.

One idea: which arms are compared, the smallest difference that counts and the rule are fixed here, before a
run, so that a verdict follows from the data and never from a look at a picture. The paper's own effect is
computed from its tables (``masters.evidence``); no result is typed in this module.

The rule. Let d be the paired difference of two arms (treatment minus control, greedy accuracy in points),
[low, high] its 95 % interval over seeds and questions, and m the margin. First match decides:

* not tested: an arm of the claim was not run, or this project runs no test of it.
* supported: low > 0 and d >= m.
* reversed: high < 0 and d <= -m.
* not supported: high < m, so an effect as large as the margin is excluded.
* undecided: everything else, and two arms that answer alike on every question.

Two claims are of another kind. "Matches or beats" (no worse): supported if low > -m, not supported if
high < -m. "Does not grow" (at most): supported if high < m, not supported if low > m. Both are undecided
otherwise. A claim with several comparisons gets the least favourable of their verdicts (reversed, not
supported, undecided, supported) and shows the comparison that earned it; of several, the one with the
smallest lower end. Asking for all of them needs no correction. Across claims none is made: a claim with
nothing behind it still passes about one time in forty.

Departures from the paper: it reports single runs without interval or rule. The margins are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from masters.claim_rows import ClaimRow
from masters.evidence import Evidence, components, rewards, source, variants
from masters.files import write_atomic
from masters.statistics import Interval, paired_difference

Kind = Literal["gain", "no worse", "at most"]

# From the least favourable verdict to the most.
SEVERITY = ("reversed", "not supported", "undecided", "supported")
# Names of one and the same run.
SAME_RUN = {"naive_rewards": ("r_max=0", "r_max=0.0")}


@dataclass(frozen=True)
class Comparison:
    """Two arms, the score they are compared on, and the paper's evidence (None where it only plots)."""

    treatment: str
    control: str
    paper: Evidence | None = None
    metric: Literal["accuracy", "tokens"] = "accuracy"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and how it is tested here.

    Attributes:
        id: C1 to C15.
        statement: the claim, as far as it is tested here.
        comparisons: all must hold; none if the claim is never tested here.
        where: the notebook that shows it.
        limits: what this scale or this comparison cannot show.
        kind: which form of the rule applies.
        margin: the smallest difference that counts, in ``unit``.
        unit: points of accuracy or percent of the control.
        paper: evidence of a claim without comparisons.
    """

    id: str
    statement: str
    comparisons: tuple[Comparison, ...]
    where: str
    limits: str
    kind: Kind = "gain"
    margin: float = 0.5
    unit: Literal["points", "percent"] = "points"
    paper: Evidence | None = None


_STUDENTS = ("Qwen2.5-VL-7B-Masters", "Qwen3-VL-8B-Masters", "InternVL3-8B-Masters", "InternVL3.5-8B-Masters")
_TEACHERS = ("Qwen2.5-VL-72B", "Qwen3-VL-32B", "InternVL3-78B", "InternVL3.5-38B")
_TINY = "Teacher and student differ by far less here than models of 8 and 38 billion weights do."

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "Distilling from the large teacher on one label a question improves the base student.",
        (Comparison("naive", "base", variants("+large_teacher", "base")),),
        "5_offline_rl",
        f"{_TINY} The base student is one checkpoint, so only the distilled runs vary by seed.",
    ),
    Claim(
        "C2",
        "Masking the teacher progressively beats the unmasked teacher.",
        (Comparison("masked", "naive_multi", components(("mask_progressive", "yes"), ("naive", "yes"))),),
        "5_offline_rl",
        "Both arms learn from the same number of responses and differ in the mask alone, as in table 5d. The "
        "larger gains of tables 1 and 2 are over naive distillation on one label.",
    ),
    Claim(
        "C3",
        "Reward feedback adds to progressive masking.",
        (Comparison("masters", "masked", variants("+reward_feedback", "+mask_progressive")),),
        "5_offline_rl",
        "The rewards come from a rule, not from a language model as judge; answers are one to four words.",
    ),
    Claim(
        "C4",
        "A mid-size teacher before the large one beats the large one alone.",
        (
            Comparison(
                "mid_then_large",
                "masters",
                Evidence(
                    "table2_teacher_scaling", {"variant": "+reward_feedback"}, {"variant": "-mid_teacher"}
                ),
            ),
        ),
        "5_offline_rl",
        "Two teachers share the steps of one, and a ladder of three rungs cannot show longer ones.",
    ),
    Claim(
        "C5",
        "A moderate first mask ratio beats an unmasked teacher when both rewards are on.",
        (Comparison("masters", "naive_rewards", Evidence("table5a_rmax", {"r_max": 0.2}, {"r_max": 0.0})),),
        "2_masking_ablations",
        "Tested at this profile's r_max, fixed beforehand, not at the best of a grid. The collapse the paper "
        "reports at 0.5 is shown in notebook 2 and not part of the verdict.",
    ),
    Claim(
        "C6",
        "Both rewards together beat either alone.",
        (
            Comparison("masters", "accuracy_only", rewards("acc+distill", "acc")),
            Comparison("masters", "distillation_only", rewards("acc+distill", "distill")),
        ),
        "4_reward_design",
        "Whether the accuracy reward is what lets a student pass its teacher is not tested.",
    ),
    Claim(
        "C7",
        "Normalising the distillation reward within a question's responses matters.",
        (Comparison("masters", "unnormalised", rewards("acc+distill", "acc+distill_unnormalised")),),
        "4_reward_design",
        "Advantages are standardised within the group in both arms, which leaves little for this step to do.",
    ),
    Claim(
        "C8",
        "A language model as judge gives a better accuracy reward than a rule.",
        (),
        "4_reward_design",
        "Needs a language model as judge. With answers of one to four words a rule makes few errors.",
        paper=rewards("acc", "acc_rule_based"),
    ),
    Claim(
        "C9",
        "An equal mix of student and teacher responses beats those of one model alone.",
        (
            Comparison("masters", "source=0:8", source(0, 8)),
            Comparison("masters", "source=8:0", source(8, 0)),
        ),
        "3_response_caching",
        "Uneven mixes are shown in notebook 3 and not part of the verdict.",
    ),
    Claim(
        "C10",
        "Eight responses a question beat two.",
        (Comparison("masters", "responses=2"),),
        "3_response_caching",
        "The paper plots this and gives no numbers. Saturation beyond eight is not tested.",
    ),
    Claim(
        "C11",
        "Several responses a question beat one label.",
        (Comparison("naive_multi", "naive", components(("naive", "yes"), ("naive", "no"))),),
        "5_offline_rl",
        "The labels come in several registers, so one label is already more varied than a single style.",
    ),
    Claim(
        "C12",
        "Masters improves other distillation objectives that it is plugged into.",
        (
            Comparison(
                "masters=skewed_kl",
                "alone=skewed_kl",
                Evidence("table5f_other_methods", {"masters": "yes"}, {"masters": "no"}),
            ),
        ),
        "5_offline_rl",
        "One objective, the skewed KL of DistiLLM without its schedule; the other three methods are not run.",
    ),
    Claim(
        "C13",
        "The distilled student matches or beats a larger model.",
        (
            Comparison(
                "masters",
                "mid",
                Evidence(
                    "table3_masters_students",
                    {"model": _STUDENTS},
                    {"model": _TEACHERS},
                    "table4_large_models",
                ),
            ),
        ),
        "6_benchmark_evaluation",
        "Compared with the mid rung of the ladder; the paper's figure is students of 7 and 8 billion weights "
        "against models of 32 to 78 billion. Matching means not worse by more than the margin.",
        kind="no worse",
    ),
    Claim(
        "C14",
        "Offline training costs a small part of what online reinforcement learning costs.",
        (),
        "3_response_caching",
        "No online run is made. The paper's own figure is an estimate.",
    ),
    Claim(
        "C15",
        "Answers do not get longer, so inference takes as long as for the base student.",
        (Comparison("masters", "base", metric="tokens"),),
        "6_benchmark_evaluation",
        "Measured as response length; the times of notebook 6 depend on the machine.",
        kind="at most",
        margin=10.0,
        unit="percent",
    ),
)


def verdict(effect: Interval, margin: float, kind: Kind = "gain") -> str:
    """The rule at the top of this module, for one comparison.

    Args:
        effect: the difference with its interval, in the margin's unit.
        margin: the smallest difference that counts.
        kind: form of the rule.

    Raises:
        ValueError: the margin is negative or no number.
    """
    if not margin >= 0:
        raise ValueError(f"a margin must be at least 0, not {margin}")
    _, low, high = effect
    if low == high == 0:  # the arms answer alike on every question, as models that learned nothing do
        return "undecided"
    if kind == "gain":
        if low > 0 and effect.estimate >= margin:
            return "supported"
        if high < 0 and effect.estimate <= -margin:
            return "reversed"
        return "not supported" if high < margin else "undecided"
    if kind == "no worse":
        return "supported" if low > -margin else "not supported" if high < -margin else "undecided"
    return "supported" if high < margin else "not supported" if low > margin else "undecided"


def paired_scores(
    predictions: pd.DataFrame, treatment: str, control: str, metric: str = "accuracy"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Greedy scores of two arms on the seeds and questions both have.

    An arm with a single run, such as a model of the ladder, stands beside every seed of the other.

    Args:
        predictions: one row a run, question and mode, see ``masters.experiments``.
        treatment: name of an arm.
        control: name of the other.
        metric: ``accuracy`` (0 or 1) or ``tokens`` (of the response).

    Returns:
        Both arms' scores ``(seeds, questions)`` and the task of each question ``(questions,)``.

    Raises:
        ValueError: an arm has no greedy predictions or two of one question, or they share none.
    """
    value = {"accuracy": "correct", "tokens": "tokens"}[metric]
    wide = []
    for arm in (treatment, control):
        rows = predictions[(predictions["arm"] == arm) & (predictions["mode"] == "greedy")]
        if rows.empty:
            raise ValueError(f"no greedy predictions of arm {arm!r}: run it before comparing it")
        if rows.duplicated(["seed", "task", "question"]).any():
            raise ValueError(f"arm {arm!r} has two predictions of one question with one seed; drop one")
        wide.append(rows.pivot(index="seed", columns=["task", "question"], values=value).astype(np.float64))
    # Sorted, so that the order of the rows cannot change an interval.
    wide = [table.sort_index(axis=0).sort_index(axis=1) for table in wide]
    first, second = wide
    columns = first.columns.intersection(second.columns)
    if len(first) == 1 < len(second):
        first = first.loc[first.index.repeat(len(second))].set_axis(second.index)
    elif len(second) == 1 < len(first):
        second = second.loc[second.index.repeat(len(first))].set_axis(first.index)
    elif len(first) == len(second) == 1:
        second = second.set_axis(first.index)
    seeds = first.index.intersection(second.index)
    if columns.empty or seeds.empty:
        raise ValueError(f"arms {treatment!r} and {control!r} share no seed or no question: run both alike")
    tasks = columns.get_level_values("task").to_numpy(dtype=str)
    return first.loc[seeds, columns].to_numpy(), second.loc[seeds, columns].to_numpy(), tasks


def measured(
    predictions: pd.DataFrame, comparison: Comparison, resamples: int, seed: int = 0
) -> Interval | None:
    """The effect of one comparison with its 95 % interval; None if an arm is absent.

    In points for accuracy; for tokens in percent of the control's mean length, which is taken as known.

    Raises:
        ValueError: as ``paired_scores``.
    """
    present = set(predictions.loc[predictions["mode"] == "greedy", "arm"])
    names = [
        next((name for name in (arm, *SAME_RUN.get(arm, ())) if name in present), None)
        for arm in (comparison.treatment, comparison.control)
    ]
    if names[0] is None or names[1] is None:
        return None
    a, b, tasks = paired_scores(predictions, names[0], names[1], comparison.metric)
    scale = 100.0 / float(b.mean()) if comparison.metric == "tokens" else 100.0
    return Interval(*(scale * bound for bound in paired_difference(a, b, tasks, resamples, seed)))


def judge_claims(
    predictions: pd.DataFrame, resamples: int, seed: int = 0, claims: Sequence[Claim] = CLAIMS
) -> pd.DataFrame:
    """Every claim with the paper's effect, ours and the verdict.

    Args:
        predictions: of all arms, see ``paired_scores``.
        resamples: bootstrap resamples of each interval.
        seed: of the bootstrap.
        claims: the claims to judge.

    Returns:
        One row a claim: the columns of :class:`masters.claim_rows.ClaimRow` as text, then ``paper_effect``,
        ``effect``, ``effect_low`` and ``effect_high`` as numbers in ``unit`` (NaN where there is none),
        ``margin``, ``kind``, ``treatment``, ``control`` and ``limits``.

    Raises:
        ValueError: as ``measured``.
    """
    return pd.DataFrame([_judged(claim, predictions, resamples, seed) for claim in claims])


def write_claims(frame: pd.DataFrame, path: Path | str) -> None:
    """Write what ``judge_claims`` returned as CSV, whole or not at all.

    Raises:
        ValueError: a column of ``ClaimRow`` is missing.
        OSError: the file cannot be written.
    """
    if lacking := [name for name in ClaimRow._fields if name not in frame]:
        raise ValueError(f"the claims lack the column {', '.join(lacking)}: pass the frame of judge_claims")
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def _judged(claim: Claim, predictions: pd.DataFrame, resamples: int, seed: int) -> dict[str, object]:
    effects = [measured(predictions, comparison, resamples, seed) for comparison in claim.comparisons]
    known = [effect for effect in effects if effect is not None]
    shown = next(iter(claim.comparisons), None)
    evidence = shown.paper if shown else claim.paper
    outcome, effect = "not tested", Interval(float("nan"), float("nan"), float("nan"))
    if known and len(known) == len(effects):
        outcomes = [verdict(each, claim.margin, claim.kind) for each in known]
        ranks = [(SEVERITY.index(each), effect.low) for each, effect in zip(outcomes, known, strict=True)]
        worst = ranks.index(min(ranks))
        outcome, effect, shown = outcomes[worst], known[worst], claim.comparisons[worst]
        evidence = shown.paper
    paper = evidence.effect() if evidence else float("nan")
    row = ClaimRow(
        id=claim.id,
        statement=claim.statement,
        paper=_signed(paper),
        ours=_signed(effect.estimate),
        low=_signed(effect.low),
        high=_signed(effect.high),
        unit=claim.unit,
        verdict=outcome,
        where=claim.where,
    )
    return {
        **row._asdict(),
        "paper_effect": paper,
        "effect": effect.estimate,
        "effect_low": effect.low,
        "effect_high": effect.high,
        "margin": claim.margin,
        "kind": claim.kind,
        "treatment": shown.treatment if shown else "",
        "control": shown.control if shown else "",
        "limits": claim.limits,
    }


def _signed(value: float) -> str:
    """One decimal with its sign; empty for NaN, and no sign before a zero."""
    text = "" if np.isnan(value) else f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text
