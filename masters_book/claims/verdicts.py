"""The rule that turns a measured effect into a verdict.

Arms and margins are in :mod:`masters_book.claims.claims`. A verdict follows from the data, never from
inspecting a figure. ``book/history.md`` lists the changes of the rule that were made after results were
known.

Let d be the paired difference of two arms (treatment minus control, greedy accuracy in points), [low, high]
its 95 % interval over seeds and questions, and m the margin. The first match decides:

* not tested: an arm of the claim was not run.
* supported: low > 0 and d >= m, and the claim's p-value, adjusted for all claims tested (Holm), is below
  0.05.
* reversed: high < 0 and d <= -m, with the same condition.
* not supported: high < m, so an effect as large as the margin is excluded.
* undecided: everything else, and two arms with the same score on every question. The latter, as of models
  that have learned nothing, exclude no effect and detect none.

Three claims have another kind of rule. "Matches or beats" (no worse): supported if low > -m, not supported if
high < -m. "Does not grow" (at most): supported if high < m, not supported if low > m. "A small part" (at
least, of a ratio): supported if low > m, not supported if high < m. Otherwise they are undecided.

A claim with several deciding comparisons gets the least favorable of their verdicts (reversed, not supported,
undecided, supported) and shows that comparison; of several, the one with the smallest lower bound. Requiring
all of them needs no correction: the p-value of a supported claim is the largest of its comparisons. Otherwise
one of them is enough, so the p-value shown is multiplied by their number (Bonferroni). It tests d = 0, or for
the other kinds d = -m or d = m, one-sided.

Each verdict comes with the smallest true effect whose own interval excludes the tested value with a power of
0.8 (for "at most" the largest). *Supported* needs more than that: the margin, and Holm's correction. It also
comes with whether the interval excludes the paper's matched effect, the effect as a percentage of the gap
between base student and large teacher, and the same effect on sampled answers.

Departures from the paper: it reports single runs, without intervals and without a rule.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from masters.runtime.files import write_atomic
from masters_book.claims.claims import CLAIMS, Claim, Kind
from masters_book.claims.comparisons import EFFECT, PAIR, SAMPLED, Comparison
from masters_book.claims.significance import Alternative, holm, minimum_detectable_effect, p_value
from masters_book.claims.statistics import Interval
from masters_book.claims.table import SHOWN, shown, signed, span

ALPHA = 0.05
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
    if _says_nothing(effect):
        return "undecided"
    if kind == "gain":
        if low > 0 and effect.estimate >= margin:
            return "supported"
        if high < 0 and effect.estimate <= -margin:
            return "reversed"
        return "not supported" if high < margin else "undecided"
    bound, side = _tested(kind, margin)
    if side == "less":
        low, high, bound = -high, -low, -bound
    return "supported" if low > bound else "not supported" if high < bound else "undecided"


def excludes_paper(effect: Interval, comparison: Comparison) -> str:
    """Return whether an interval excludes the paper's matched effect: ``yes``, ``no`` or ``no figure``."""
    if comparison.paper is None:
        return "no figure"
    within = effect.low <= comparison.paper.effect() <= effect.high
    return "no" if within or _says_nothing(effect) else "yes"


def disagree(row: Mapping[Any, Any]) -> bool:
    """Return whether greedy and sampled intervals say different things: above zero, below zero, or neither.

    This compares two statements, not two effects: these may differ little.
    """
    sides = [_side(row[f"{name}_low"], row[f"{name}_high"]) for name in ("effect", "sampled")]
    return bool(np.isfinite(row["sampled"])) and sides[0] != sides[1]


def judge_claims(effects: pd.DataFrame, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Return every claim with the paper's effect, ours and the verdict.

    Args:
        effects: as :func:`masters_book.claims.comparisons.measure` returns them.

    Returns:
        One row per claim: ``id``, ``statement``, ``paper``, ``ours``, ``low``, ``high``, ``unit``,
        ``verdict``, ``where`` as text; numbers in the claim's unit (NaN if there is none): ``paper_effect``,
        ``effect``, ``effect_low``, ``effect_high``, ``smallest`` (the effect whose interval excludes the
        tested value with a power of 0.8), ``p``, ``p_holm``, ``seeds`` (shared by the two arms), ``margin``,
        ``share`` (of the capacity gap, in percent), ``sampled``, ``sampled_low``, ``sampled_high``; and
        ``kind``, ``treatment``, ``control``, ``cells``, ``excludes_paper``, ``disagree`` (comparisons whose
        greedy and sampled effects disagree), ``limits``.
    """
    compared = judge_comparisons(effects, claims).to_dict("records")
    frame = pd.DataFrame([_judged(claim, compared) for claim in claims])
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
        effects: as :func:`masters_book.claims.comparisons.measure` returns them.

    Returns:
        The rows of ``effects`` that belong to these claims, in the claims' order, with ``unit``,
        ``paper_effect``, ``cells``, ``margin``, ``excludes_paper``, ``share``, ``disagree``, ``role``,
        ``note``, ``smallest``, ``p`` and ``verdict``; the verdict is empty for comparisons that are only
        shown.
    """
    rows = {tuple(row[name] for name in PAIR): row for row in effects.to_dict("records")}
    judged = []
    pairs = [(claim, each) for claim in claims for each in claim.comparisons]
    for claim, each in pairs:
        row = rows.get((claim.id, each.treatment, each.control, each.metric))
        if row is None:
            continue
        effect, margin = interval_of(row), claim.margin_of(each)
        tested, side = _tested(claim.kind, margin)
        nothing, detectable = _says_nothing(effect), minimum_detectable_effect(effect)
        judged.append(
            row
            | _planned(claim, each)
            | {
                "excludes_paper": excludes_paper(effect, each),
                # In percent of the capacity gap; NaN unless the teacher is above the student.
                "share": 100 * row["effect"] / row["gap"] if row["gap"] > 0 else np.nan,
                "disagree": disagree(row),
                "role": each.role,
                "note": each.note,
                "smallest": np.nan if nothing else tested + (-detectable if side == "less" else detectable),
                "p": 1.0 if nothing else p_value(effect, tested, side),
                "verdict": "" if each.role == "shown" else verdict(effect, margin, claim.kind),
            }
        )
    return pd.DataFrame(judged)


def interval_of(row: Mapping[Any, Any]) -> Interval:
    """Return the effect in a row of :func:`masters_book.claims.comparisons.measure` as an interval."""
    return Interval(*(float(row[name]) for name in ("effect", "effect_low", "effect_high", "freedom")))


def write_claims(frame: pd.DataFrame, path: Path | str) -> None:
    """Write what :func:`judge_claims` returned as CSV. The file is written only when complete.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def _tested(kind: Kind, margin: float) -> tuple[float, Alternative]:
    """Return the value that the p-value tests, and the alternative."""
    if kind == "gain":
        return 0.0, "two-sided"
    return (-margin if kind == "no worse" else margin), ("less" if kind == "at most" else "greater")


def _planned(claim: Claim, comparison: Comparison) -> dict[str, Any]:
    """Return what is known of a comparison before it is run."""
    paper = comparison.paper
    return {
        "treatment": comparison.treatment,
        "control": comparison.control,
        "unit": comparison.unit,
        "paper_effect": paper.effect() if paper else np.nan,
        "cells": paper.cells if paper else "",
        "margin": claim.margin_of(comparison),
    }


def _judged(claim: Claim, compared: Sequence[Mapping[Any, Any]]) -> dict[str, object]:
    """Return a claim with its least favorable comparison, or the first if it was not tested."""
    run = [row for row in compared if row["id"] == claim.id and row["role"] != "shown"]
    arms = {(row["treatment"], row["control"]) for row in run}
    deciding = [each for each in claim.comparisons if each.role != "shown"]
    needed = {(each.treatment, each.control) for each in deciding if each.role == "decides"}
    if run and needed <= arms:
        row = min(run, key=lambda row: (SEVERITY.index(row["verdict"]), row["effect_low"]))
        needs_all = row["verdict"] == "supported"
        p = max(row["p"] for row in run) if needs_all else min(1.0, row["p"] * len(run))
        differing = "; ".join(_greedy_and_sampled(row) for row in run if row["disagree"])
    else:
        nothing: dict[str, Any] = dict.fromkeys((*EFFECT, *SAMPLED, "smallest", "share"), np.nan)
        nothing |= {"seeds": 0, "verdict": "not tested", "excludes_paper": ""}
        row, p, differing = _planned(claim, deciding[0]) | nothing, np.nan, ""
    return {
        "id": claim.id,
        "statement": claim.statement,
        **{
            name: shown(row[value], claim.unit)
            for name, value in zip(SHOWN, ("paper_effect", *EFFECT[:3]), strict=True)
        },
        "unit": claim.unit,
        "verdict": row["verdict"],
        "where": claim.where,
        **{name: row[name] for name in ("paper_effect", "effect", "effect_low", "effect_high", "smallest")},
        "p": p,
        "p_holm": p,
        "seeds": int(row["seeds"]),
        **{name: row[name] for name in ("margin", "share", *SAMPLED)},
        "kind": claim.kind,
        **{name: row[name] for name in ("treatment", "control", "cells", "excludes_paper")},
        "disagree": differing,
        "limits": claim.limits,
    }


def _says_nothing(effect: Interval) -> bool:
    """Return whether the arms score the same on every question, as models do that have learned nothing."""
    return effect.low == effect.high == 0


def _side(low: float, high: float) -> str:
    return "above" if low > 0 else "below" if high < 0 else "neither"


def _greedy_and_sampled(row: Mapping[Any, Any]) -> str:
    greedy, sampled = (
        f"{name} {signed(row[key])} ({span(row, key)})"
        for name, key in (("greedy", "effect"), ("sampled", "sampled"))
    )
    return f"{row['treatment']} against {row['control']}: {greedy}, {sampled}"
