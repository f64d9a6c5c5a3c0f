"""The rule that turns a measured difference into a verdict, and the claims judged by it.

One idea: the rule is fixed here, as the arms and margins are in :mod:`masters.claims`, before a run, so that
a verdict follows from the data and never from a look at a picture.

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
least, of a ratio): supported if low > m, not supported if high < m. They are undecided otherwise.

A claim with several comparisons gets the least favourable of their verdicts (reversed, not supported,
undecided, supported) and shows the comparison that earned it; of several, the one with the smallest lower
end. Asking for all of them needs no correction: the p-value of a supported claim is the largest of its
comparisons. It is of d = 0, for the other kinds of d = -m or of d = m, one-sided.

Beside each verdict stands the smallest effect that the design would have found four times out of five; for
"at most" it is the largest.

Departures from the paper: it reports single runs without interval or rule.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from masters.claim_rows import ClaimRow
from masters.claims import CLAIMS, Claim, Kind
from masters.comparisons import Comparison, measured_with_seeds
from masters.files import write_atomic
from masters.statistics import (
    Interval,
    holm,
    minimum_detectable_effect,
    p_value,
    standard_error,
)

ALPHA = 0.05
COMPARED = ["id", "treatment", "control", "unit", "effect", "effect_low", "effect_high", "seeds", "verdict"]
# By claim: its comparisons whose arms were run, each with effect and number of seeds.
Effects = dict[str, list[tuple[Comparison, Interval, int]]]
# From the least favourable verdict to the most.
SEVERITY = ("reversed", "not supported", "undecided", "supported")


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


def _smallest(effect: Interval, claim: Claim) -> float:
    """The true effect that would be found four times out of five, so far from what the p-value is of."""
    away = minimum_detectable_effect(standard_error(effect))
    if claim.kind == "at most":
        return claim.margin - away
    return {"gain": 0.0, "no worse": -claim.margin, "at least": claim.margin}[claim.kind] + away


def _p_value(effect: Interval, claim: Claim) -> float:
    if claim.kind == "no worse":
        return p_value(effect, -claim.margin, "greater")
    if claim.kind == "at least":
        return p_value(effect, claim.margin, "greater")
    return p_value(effect, claim.margin, "less") if claim.kind == "at most" else p_value(effect)


def measure_claims(
    predictions: pd.DataFrame,
    resamples: int,
    seed: int = 0,
    claims: Sequence[Claim] = CLAIMS,
    costs: pd.DataFrame | None = None,
) -> Effects:
    """The effect of every comparison of the claims whose arms were run, with its interval and its seeds.

    Args:
        predictions: of all arms, see ``paired_scores``.
        resamples: bootstrap resamples of each interval.
        seed: of the bootstrap.
        claims: to measure.
        costs: of the runs, see ``measured_with_seeds``; claims about cost are not tested without.

    Raises:
        ValueError: as ``measured``.
    """
    found: Effects = {}
    for claim in claims:
        each_and_effect = (
            (each, measured_with_seeds(predictions, each, resamples, seed, costs))
            for each in claim.comparisons
        )
        found[claim.id] = [(each, *of) for each, of in each_and_effect if of is not None]
    return found


def judge_claims(effects: Effects, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Every claim with the paper's effect, ours and the verdict.

    Args:
        effects: as ``measure_claims`` returns them.
        claims: that were measured.

    Returns:
        One row a claim: the columns of :class:`masters.claim_rows.ClaimRow` as text, then ``paper_effect``,
        ``effect``, ``effect_low``, ``effect_high`` and ``smallest`` (the effect this design would have found
        with a power of 0.8) as numbers in ``unit`` (NaN where there is none), ``p`` and ``p_holm``,
        ``seeds`` (that the two arms share), ``margin``, ``kind``, ``treatment``, ``control``, ``limits``.
    """
    frame = pd.DataFrame([_judged(claim, effects[claim.id]) for claim in claims])
    tested = frame["p"].notna()
    if tested.any():
        frame.loc[tested, "p_holm"] = holm(frame.loc[tested, "p"])
    chance = frame["verdict"].isin(["supported", "reversed"]) & (frame["p_holm"] >= ALPHA)
    frame.loc[chance, "verdict"] = "undecided"
    return frame


def judge_comparisons(effects: Effects, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Every comparison that was measured, and what it would say if it were the only one.

    Args:
        effects: as ``measure_claims`` returns them.
        claims: that were measured.

    Returns:
        One row a comparison: id (of the claim), treatment, control, unit, effect, effect_low, effect_high,
        seeds, and its verdict, without regard to the other claims.
    """
    rows = [
        {
            "id": claim.id,
            "treatment": each.treatment,
            "control": each.control,
            "unit": claim.unit,
            "effect": effect.estimate,
            "effect_low": effect.low,
            "effect_high": effect.high,
            "seeds": seeds,
            "verdict": verdict(effect, claim.margin, claim.kind),
        }
        for claim in claims
        for each, effect, seeds in effects[claim.id]
    ]
    return pd.DataFrame(rows, columns=COMPARED)


def read_effects(path: Path, claims: Sequence[Claim] = CLAIMS) -> Effects:
    """What was measured, of a file that holds what ``judge_comparisons`` returned.

    So a verdict can be given anew, by the margins and the rule of today, without the answers behind it.

    Args:
        path: of the file; its own verdicts are not read.
        claims: whose comparisons are wanted; what the file has beside them is left.

    Raises:
        ValueError: the file lacks a column.
    """
    table = pd.read_csv(path)
    values = ["effect", "effect_low", "effect_high"]
    if lacking := sorted({"id", "treatment", "control", *values, "seeds"} - set(table)):
        raise ValueError(f"{path} has no column {', '.join(lacking)}: restore it with git, or delete it")
    rows = {(row["id"], row["treatment"], row["control"]): row for row in table.to_dict("records")}
    found: Effects = {}
    for claim in claims:
        pairs = ((each, rows.get((claim.id, each.treatment, each.control))) for each in claim.comparisons)
        found[claim.id] = [
            (each, Interval(*(float(row[value]) for value in values)), int(row["seeds"]))
            for each, row in pairs
            if row is not None
        ]
    return found


def write_claims(frame: pd.DataFrame, path: Path | str) -> None:
    """Write what ``judge_claims`` returned as CSV, whole or not at all.

    Raises:
        ValueError: a column of ``ClaimRow`` is missing.
        OSError: the file cannot be written.
    """
    if lacking := [name for name in ClaimRow._fields if name not in frame]:
        raise ValueError(f"the claims lack the column {', '.join(lacking)}: pass the frame of judge_claims")
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def _judged(claim: Claim, known: list[tuple[Comparison, Interval, int]]) -> dict[str, object]:
    run = [each for each, *_ in known]
    whole = all(each in run or each.where_run for each in claim.comparisons)
    shown = claim.comparisons[0]
    outcome, seeds, p, smallest = "not tested", 0, float("nan"), float("nan")
    effect = Interval(p, p, p)
    if known and whole:
        outcomes = [verdict(of, claim.margin, claim.kind) for _, of, _ in known]
        ranks = [(SEVERITY.index(each), of.low) for each, (_, of, _) in zip(outcomes, known, strict=True)]
        worst = ranks.index(min(ranks))
        outcome, (shown, effect, seeds) = outcomes[worst], known[worst]
        behind = [of for _, of, _ in known] if outcome == "supported" else [effect]
        p = max(_p_value(each, claim) for each in behind)
        smallest = _smallest(effect, claim)
    paper = shown.paper.effect() if shown.paper else float("nan")
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
        "treatment": shown.treatment,
        "control": shown.control,
        "limits": claim.limits,
    }


def _signed(value: float) -> str:
    """One decimal with its sign; empty for NaN, and no sign before a zero."""
    text = "" if np.isnan(value) else f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _plain(value: float) -> str:
    """One decimal of a ratio; empty for NaN."""
    return "" if np.isnan(value) else f"{value:.1f}"
