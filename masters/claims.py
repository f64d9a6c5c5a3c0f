"""The paper's fifteen claims as data, and the rule that turns a measured difference into a verdict.

One idea: which arms are compared, the smallest difference that counts and the rule are fixed here, before a
run, so that a verdict follows from the data and never from a look at a picture. The paper's own effect is
computed from its tables (``masters.evidence``); no result is typed in this module.

The rule. Let d be the paired difference of two arms (treatment minus control, greedy accuracy in points),
[low, high] its 95 % interval over seeds and questions, and m the margin. First match decides:

* not tested: an arm of the claim was not run, or this project runs no test of it.
* supported: low > 0 and d >= m, and the claim's p-value, adjusted for all claims tested (Holm), is below
  0.05.
* reversed: high < 0 and d <= -m, with the same condition.
* not supported: high < m, so an effect as large as the margin is excluded.
* undecided: everything else, and two arms that answer alike on every question.

Three claims are of another kind. "Matches or beats" (no worse): supported if low > -m, not supported if
high < -m. "Does not grow" (at most): supported if high < m, not supported if low > m. "A small part" (at
least, of a ratio): supported if low > m, not supported if high < m. They are undecided otherwise. A claim with several comparisons gets the least favourable of their verdicts (reversed, not
supported, undecided, supported) and shows the comparison that earned it; of several, the one with the
smallest lower end. Asking for all of them needs no correction: the p-value of a supported claim is the
largest of its comparisons. It is of d = 0, for the other kinds of d = -m or of d = m, one-sided.

Beside each verdict stands the smallest effect that the design would have found four times out of five.

Departures from the paper: it reports single runs without interval or rule. The margins are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from masters.claim_rows import ClaimRow
from masters.comparisons import Comparison, measured_with_seeds
from masters.evidence import Evidence, components, rewards, source, variants
from masters.files import write_atomic
from masters.statistics import (
    Interval,
    holm,
    minimum_detectable_effect,
    p_value,
    standard_error,
)

Kind = Literal["gain", "no worse", "at most", "at least"]

ALPHA = 0.05
# From the least favourable verdict to the most.
SEVERITY = ("reversed", "not supported", "undecided", "supported")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and how it is tested here.

    Attributes:
        id: C1 to C15.
        statement: the claim, as far as it is tested here.
        comparisons: all must hold, but those for ``where_run``; none if the claim is never tested here.
        where: the notebook that shows it.
        limits: what this scale or this comparison cannot show.
        kind: which form of the rule applies.
        margin: the smallest difference that counts, in ``unit``.
        unit: points of accuracy, percent of the control, or how many times the control.
        paper: evidence of a claim without comparisons.
    """

    id: str
    statement: str
    comparisons: tuple[Comparison, ...]
    where: str
    limits: str
    kind: Kind = "gain"
    margin: float = 0.5
    unit: Literal["points", "percent", "times"] = "points"
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
            Comparison(
                "teachers=small,mid,large",
                "mid_then_large",
                Evidence(
                    "table5b_teacher_combinations", {"teachers": "14B+38B+78B"}, {"teachers": "38B+78B"}
                ),
                where_run=True,
            ),
        ),
        "5_offline_rl",
        "Several teachers share the steps of one. Three of them are run in the study only.",
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
            Comparison("masters=forward_kl", "alone=forward_kl", where_run=True),
            Comparison("masters=reverse_kl", "alone=reverse_kl", where_run=True),
        ),
        "5_offline_rl",
        "The skewed KL of DistiLLM without its schedule, and in the study two plain divergences; the other "
        "three methods of the paper are not run.",
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
            Comparison("masters+student=mid", "large", where_run=True),
            Comparison("masters", "large", where_run=True),
        ),
        "6_benchmark_evaluation",
        "At mini the mid model has 3 times the student's weights, the large one 6 times them and twice those "
        "of mid, the student of the study's third comparison. The paper's figure is students of 7 and 8 "
        "billion weights against models of 32 to 78 billion. Matching means not worse by more than the "
        "margin.",
        kind="no worse",
    ),
    Claim(
        "C14",
        "Offline training costs a small part, at most a third, of what online reinforcement learning costs.",
        (
            Comparison(
                "online",
                "own_accuracy",
                Evidence("section5_days", {"responses": "online"}, {"responses": "offline"}, ratio=True),
                metric="cost",
            ),
        ),
        "3_response_caching",
        "Needs two replicates of the study. Seconds of one process; the same student, questions, responses a "
        "question, reward and number of steps, and responses made beforehand serve this one run alone. The "
        "online run is TRL's, which reads the prompt once for each response: part of the ratio is the engine. "
        "The paper's figure is an estimate, for many GPUs.",
        kind="at least",
        margin=3.0,
        unit="times",
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
    if kind == "at least":
        return "supported" if low > margin else "not supported" if high < margin else "undecided"
    return "supported" if high < margin else "not supported" if low > margin else "undecided"


def _p_value(effect: Interval, claim: Claim) -> float:
    if claim.kind == "no worse":
        return p_value(effect, -claim.margin, "greater")
    if claim.kind == "at least":
        return p_value(effect, claim.margin, "greater")
    return p_value(effect, claim.margin, "less") if claim.kind == "at most" else p_value(effect)


def judge_claims(
    predictions: pd.DataFrame,
    resamples: int,
    seed: int = 0,
    claims: Sequence[Claim] = CLAIMS,
    costs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Every claim with the paper's effect, ours and the verdict.

    Args:
        predictions: of all arms, see ``paired_scores``.
        resamples: bootstrap resamples of each interval.
        seed: of the bootstrap.
        claims: the claims to judge.
        costs: of the runs, see ``measured_with_seeds``; claims about cost are not tested without.

    Returns:
        One row a claim: the columns of :class:`masters.claim_rows.ClaimRow` as text, then ``paper_effect``,
        ``effect``, ``effect_low``, ``effect_high`` and ``smallest`` (the effect this design would have found
        with a power of 0.8) as numbers in ``unit`` (NaN where there is none), ``p`` and ``p_holm``,
        ``seeds`` (that the two arms share), ``margin``, ``kind``, ``treatment``, ``control``, ``limits``.

    Raises:
        ValueError: as ``measured``.
    """
    frame = pd.DataFrame([_judged(claim, predictions, resamples, seed, costs) for claim in claims])
    tested = frame["p"].notna()
    if tested.any():
        frame.loc[tested, "p_holm"] = holm(frame.loc[tested, "p"])
    chance = frame["verdict"].isin(["supported", "reversed"]) & (frame["p_holm"] >= ALPHA)
    frame.loc[chance, "verdict"] = "undecided"
    return frame


def write_claims(frame: pd.DataFrame, path: Path | str) -> None:
    """Write what ``judge_claims`` returned as CSV, whole or not at all.

    Raises:
        ValueError: a column of ``ClaimRow`` is missing.
        OSError: the file cannot be written.
    """
    if lacking := [name for name in ClaimRow._fields if name not in frame]:
        raise ValueError(f"the claims lack the column {', '.join(lacking)}: pass the frame of judge_claims")
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def _judged(
    claim: Claim, predictions: pd.DataFrame, resamples: int, seed: int, costs: pd.DataFrame | None
) -> dict[str, object]:
    found = [(each, measured_with_seeds(predictions, each, resamples, seed, costs)) for each in claim.comparisons]
    found = [(each, of) for each, of in found if of is not None or not each.where_run]
    known = [(each, *of) for each, of in found if of is not None]
    shown = next(iter(claim.comparisons), None)
    evidence = shown.paper if shown else claim.paper
    outcome, seeds, p, smallest = "not tested", 0, float("nan"), float("nan")
    effect = Interval(p, p, p)
    if known and len(known) == len(found):
        outcomes = [verdict(of, claim.margin, claim.kind) for _, of, _ in known]
        ranks = [(SEVERITY.index(each), of.low) for each, (_, of, _) in zip(outcomes, known, strict=True)]
        worst = ranks.index(min(ranks))
        outcome, (shown, effect, seeds) = outcomes[worst], known[worst]
        evidence = shown.paper
        behind = [of for _, of, _ in known] if outcome == "supported" else [effect]
        p = max(_p_value(each, claim) for each in behind)
        smallest = minimum_detectable_effect(standard_error(effect))
    paper = evidence.effect() if evidence else float("nan")
    shown_as = _plain if claim.unit == "times" else _signed
    row = ClaimRow(
        id=claim.id,
        statement=claim.statement,
        paper=shown_as(paper),
        ours=shown_as(effect.estimate),
        low=shown_as(effect.low),
        high=shown_as(effect.high),
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
        "smallest": smallest,
        "p": p,
        "p_holm": p,
        "seeds": seeds,
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


def _plain(value: float) -> str:
    """One decimal of a ratio; empty for NaN."""
    return "" if np.isnan(value) else f"{value:.1f}"
