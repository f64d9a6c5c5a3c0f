"""The rule that turns a measured effect into a verdict.

The rule is fixed here before a run, as arms and margins are in :mod:`masters.claims.claims`. A verdict
follows from the data, never from inspecting a figure.

Let d be the paired difference of two arms (treatment minus control, greedy accuracy in points), [low, high]
its 95 % interval over seeds and questions, and m the margin. The first match decides:

* not tested: an arm of the claim was not run.
* supported: low > 0 and d >= m, and the claim's p-value, adjusted for all claims tested (Holm), is below
  0.05.
* reversed: high < 0 and d <= -m, with the same condition.
* not supported: high < m, so an effect as large as the margin is excluded.
* undecided: everything else, and two arms with the same score on every question.

Three claims have another kind of rule. "Matches or beats" (no worse): supported if low > -m, not supported if
high < -m. "Does not grow" (at most): supported if high < m, not supported if low > m. "A small part" (at
least, of a ratio): supported if low > m, not supported if high < m. Otherwise they are undecided.

A claim with several deciding comparisons gets the least favorable of their verdicts (reversed, not supported,
undecided, supported) and shows that comparison; of several, the one with the smallest lower bound. Requiring
all of them needs no correction: the p-value of a supported claim is the largest of its comparisons. It tests
d = 0, or for the other kinds d = -m or d = m, one-sided.

Each verdict comes with the smallest effect that the design finds with a power of 0.8 (for "at most" the
largest), whether the interval excludes the paper's matched effect, the effect as a percentage of the gap
between base student and large teacher, and the same effect on sampled answers.

Departures from the paper: it reports single runs, without intervals and without a rule.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from masters.claims.claims import CLAIMS, Claim, Kind
from masters.claims.comparisons import PAIR, SAMPLED, Comparison
from masters.claims.statistics import Interval, holm, minimum_detectable_effect, p_value
from masters.claims.table import signed
from masters.runtime.files import write_atomic

ALPHA = 0.05
Rows = dict[tuple[str, ...], dict[Any, Any]]  # rows of effects by id, treatment, control and metric
# From the least favorable verdict to the most favorable.
SEVERITY = ("reversed", "not supported", "undecided", "supported")


def verdict(effect: Interval, margin: float, kind: Kind = "gain") -> str:
    """Return the verdict on one comparison by the rule at the top of this module, before Holm's correction.

    Args:
        effect: the difference with its interval, in the margin's unit.
        margin: the smallest difference that counts, at least 0.
        kind: the form of the rule.

    Raises:
        ValueError: the margin is negative or not a number.
    """
    if not margin >= 0:
        raise ValueError(f"a margin must be at least 0, not {margin}")
    low, high = effect.low, effect.high
    if low == high == 0:  # the arms score the same on every question, as untrained models do
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


def excludes_paper(effect: Interval, comparison: Comparison) -> str:
    """Return whether an interval excludes the paper's matched effect: ``yes``, ``no`` or ``no figure``."""
    if comparison.paper is None:
        return "no figure"
    return "no" if effect.low <= comparison.paper.effect() <= effect.high else "yes"


def disagree(row: Mapping[Any, Any]) -> bool:
    """Return whether the intervals of greedy and sampled answers lie on different sides of zero."""
    sides = [_side(row[f"{name}_low"], row[f"{name}_high"]) for name in ("effect", "sampled")]
    return bool(np.isfinite(row["sampled"])) and sides[0] != sides[1]


def judge_claims(effects: pd.DataFrame, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Return every claim with the paper's effect, ours and the verdict.

    Args:
        effects: as :func:`masters.claims.comparisons.measure` returns them.

    Returns:
        One row per claim: ``id``, ``statement``, ``paper``, ``ours``, ``low``, ``high``, ``unit``,
        ``verdict``, ``where`` as text; numbers in the claim's unit (NaN if there is none): ``paper_effect``,
        ``effect``, ``effect_low``, ``effect_high``, ``smallest`` (the effect this design finds with a power
        of 0.8), ``p``, ``p_holm``, ``seeds`` (shared by the two arms), ``margin``, ``share`` (of the capacity
        gap, in percent), ``sampled``, ``sampled_low``, ``sampled_high``; and ``kind``, ``treatment``,
        ``control``, ``cells``, ``excludes_paper``, ``disagree`` (comparisons whose greedy and sampled effects
        disagree), ``limits``.
    """
    rows = _by_pair(effects)
    frame = pd.DataFrame([_judged(claim, rows) for claim in claims])
    tested = frame["p"].notna()
    if tested.any():
        frame.loc[tested, "p_holm"] = holm(frame.loc[tested, "p"])
    # Without significance the next line of the rule that matches decides; "reversed" has high < m.
    for outcome, otherwise in (("supported", "undecided"), ("reversed", "not supported")):
        insignificant = (frame["verdict"] == outcome) & (frame["p_holm"] >= ALPHA)
        frame.loc[insignificant, "verdict"] = otherwise
    return frame


def judge_comparisons(effects: pd.DataFrame, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Return every measured comparison of the claims, with the verdict it would give alone.

    Args:
        effects: as :func:`masters.claims.comparisons.measure` returns them.

    Returns:
        The rows of ``effects`` that belong to these claims, in the claims' order, with ``unit``,
        ``paper_effect``, ``cells``, ``excludes_paper``, ``margin``, ``share``, ``disagree``, ``role``,
        ``note`` and ``verdict``; the verdict is empty for comparisons that are only shown.
    """
    rows, judged = _by_pair(effects), []
    pairs = [(claim, each) for claim in claims for each in claim.comparisons]
    for claim, each in pairs:
        if (row := rows.get(_key(claim, each))) is None:
            continue
        effect, margin = interval_of(row), claim.margin_of(each)
        judged.append(
            row
            | {
                "unit": each.unit,
                "paper_effect": _paper(each),
                "cells": each.paper.cells if each.paper else "",
                "excludes_paper": excludes_paper(effect, each),
                "margin": margin,
                "share": _share(row),
                "disagree": disagree(row),
                "role": each.role,
                "note": each.note,
                "verdict": "" if each.role == "shown" else verdict(effect, margin, claim.kind),
            }
        )
    return pd.DataFrame(judged)


def interval_of(row: Mapping[Any, Any]) -> Interval:
    """Return the effect in a row of :func:`masters.claims.comparisons.measure` as an interval."""
    return Interval(*(float(row[name]) for name in ("effect", "effect_low", "effect_high", "freedom")))


def write_claims(frame: pd.DataFrame, path: Path | str) -> None:
    """Write what :func:`judge_claims` returned as CSV. The file is written only when complete.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def _judged(claim: Claim, rows: Rows) -> dict[str, object]:
    deciding = [each for each in claim.comparisons if each.role != "shown"]
    run = [(each, rows[_key(claim, each)]) for each in deciding if _key(claim, each) in rows]
    missing = [each for each in deciding if each.role == "decides" and _key(claim, each) not in rows]
    nan = float("nan")
    shown, outcome, effect, sampled = deciding[0], "not tested", Interval(nan, nan, nan), [nan] * 3
    seeds, p, smallest, share, excluded, differing = 0, nan, nan, nan, "", ""
    if run and not missing:
        judged = []
        for pair, row in run:
            interval = interval_of(row)
            judged.append((verdict(interval, claim.margin_of(pair), claim.kind), pair, row, interval))
        outcome, shown, row, effect = min(judged, key=lambda each: (SEVERITY.index(each[0]), each[3].low))
        seeds, excluded, share = int(row["seeds"]), excludes_paper(effect, shown), _share(row)
        p = max(
            _p_value(interval, claim, pair)
            for _, pair, _, interval in judged
            if outcome == "supported" or pair is shown
        )
        smallest = _smallest(effect, claim, shown)
        sampled = [float(row[name]) for name in SAMPLED]
        differing = "; ".join(_greedy_and_sampled(pair, row) for pair, row in run if disagree(row))
    paper = _paper(shown)
    text = signed if claim.unit != "times" else lambda value: "" if np.isnan(value) else f"{value:.1f}"
    return {
        "id": claim.id,
        "statement": claim.statement,
        "paper": text(paper),
        "ours": text(effect.estimate),
        "low": text(effect.low),
        "high": text(effect.high),
        "unit": claim.unit,
        "verdict": outcome,
        "where": claim.where,
        "paper_effect": paper,
        "effect": effect.estimate,
        "effect_low": effect.low,
        "effect_high": effect.high,
        "smallest": smallest,
        "p": p,
        "p_holm": p,
        "seeds": seeds,
        "margin": claim.margin_of(shown),
        "share": share,
        **dict(zip(SAMPLED, sampled, strict=True)),
        "kind": claim.kind,
        "treatment": shown.treatment,
        "control": shown.control,
        "cells": shown.paper.cells if shown.paper else "",
        "excludes_paper": excluded,
        "disagree": differing,
        "limits": claim.limits,
    }


def _by_pair(effects: pd.DataFrame) -> Rows:
    return {tuple(str(row[name]) for name in PAIR): row for row in effects.to_dict("records")}


def _key(claim: Claim, comparison: Comparison) -> tuple[str, ...]:
    return claim.id, comparison.treatment, comparison.control, comparison.metric


def _paper(comparison: Comparison) -> float:
    return comparison.paper.effect() if comparison.paper else float("nan")


def _smallest(effect: Interval, claim: Claim, comparison: Comparison) -> float:
    """Return the true effect found with a power of 0.8, measured from the value that the p-value tests."""
    detectable, margin = minimum_detectable_effect(effect), claim.margin_of(comparison)
    if claim.kind == "at most":
        return margin - detectable
    return {"gain": 0.0, "no worse": -margin, "at least": margin}[claim.kind] + detectable


def _p_value(effect: Interval, claim: Claim, comparison: Comparison) -> float:
    margin = claim.margin_of(comparison)
    if claim.kind == "no worse":
        return p_value(effect, -margin, "greater")
    if claim.kind == "at least":
        return p_value(effect, margin, "greater")
    return p_value(effect, margin, "less") if claim.kind == "at most" else p_value(effect)


def _share(row: Mapping[Any, Any]) -> float:
    """Return the effect in percent of the capacity gap; NaN unless the teacher is above the student."""
    return 100 * float(row["effect"]) / float(row["gap"]) if row["gap"] > 0 else float("nan")


def _side(low: float, high: float) -> str:
    return "above" if low > 0 else "below" if high < 0 else "neither"


def _greedy_and_sampled(comparison: Comparison, row: Mapping[Any, Any]) -> str:
    greedy, sampled = (
        f"{name} {signed(row[key])} ({signed(row[f'{key}_low'])} to {signed(row[f'{key}_high'])})"
        for name, key in (("greedy", "effect"), ("sampled", "sampled"))
    )
    return f"{comparison.treatment} against {comparison.control}: {greedy}, {sampled}"
