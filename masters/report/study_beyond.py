"""What a study says beyond the claims, as MyST: the map of its effects, the sweep of the learning rate."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from masters.figures.study import effect_map, sweep
from masters.figures.style import write_svg
from masters.report.markup import Html, code, escaped, folded, table
from masters.study.sweep import swept, whole, worst


def map_section(effects: pd.DataFrame, beside: Path, blind: pd.Series) -> list[str]:
    """Return where an effect is, and how large one would have been seen elsewhere; nothing without a pair.

    Args:
        effects: as :func:`masters.study.effects.measure_map` returns them.
        beside: the picture's name begins with the stem of this path.
        blind: accuracy of the blind baseline as a fraction, by task and of ``all`` questions; may be empty.
    """
    if effects.empty:
        return []
    about = (
        "*Masking* is a masked teacher against an unmasked one without rewards, *masking under rewards* the "
        "same with both rewards. *Rewards* is both rewards against none, each with the learning rate chosen "
        "for it; *at one learning rate* has that of the rewarded arm in both. Otherwise the arms of a pair "
        "are alike. Rates were chosen at the usual setting; another student or teacher may need others. The "
        "95 % intervals, over seeds and questions, are not corrected for their number: of twenty, one misses "
        "zero by chance."
    )
    level = 100 * float(blind.get("all", 0.0))
    if level:
        about += (
            f" A lookup from the question's text, which sees no picture, answers {level:.1f} %: a student "
            "below that before training is marked, and says little about learning to see."
        )
    rows = [
        [
            f"{row['axis']} {row['value']:.3g}",
            ""
            if np.isnan(row["student_accuracy"])
            else f"{row['student_accuracy']:.1f}"
            + (" (below blind)" if row["student_accuracy"] < level else ""),
            str(row["effect"]),
            Html(f"{code(row['treatment'])} against {code(row['control'])}"),
            Html(f"{row['points']:+z.1f}<br>{row['low']:+z.1f} to {row['high']:+z.1f}"),
            f"{row['smallest']:.1f}",
            str(row["seeds"]),
        ]
        for row in effects.to_dict("records")
    ]
    header = [
        "Place",
        Html("Student before<br>training, %"),
        "Effect of",
        "Arms",
        Html("Points<br>95 % interval"),
        Html("Smallest<br>detectable"),
    ]
    words = "The effects of masking and of the rewards along each axis, with their 95 % intervals."
    return [
        "## Where the parts help",
        about,
        _picture(effect_map(effects, level), beside, "map", words),
        _found(effects),
        folded("Every place of the map", table([*header, "Seeds"], rows)),
    ]


def _found(effects: pd.DataFrame) -> str:
    """In how many places each effect was found, and how large one would have been."""
    said = []
    pairs = effects.drop_duplicates(["treatment", "control"])  # the usual setting is on every axis
    for effect, rows in pairs.groupby("effect", sort=False):
        above, below = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
        least, most = (f"{end:+z.1f}" for end in (rows["points"].min(), rows["points"].max()))
        half, every = (f"{end:.1f}" for end in (rows["smallest"].median(), rows["smallest"].max()))
        said.append(
            f"- *{effect}*: pairs of arms compared {len(rows)}, the interval above zero in {above} and below "
            f"in {below}; estimates from {least} to {most} points. Half of the comparisons would have found "
            f"an effect of {half} points four times out of five, all of them one of {every}."
        )
    return "\n".join(said)


def sweep_section(runs: pd.DataFrame, beside: Path) -> list[str]:
    """Every form of the objective over the learning rates; nothing without an arm that has one in its name.

    Args:
        runs: of a study, those that count.
        beside: as of :func:`map_section`.
    """
    if swept(runs).empty:
        return []
    words = "Accuracy, length of the answers and KL to the student before training at each learning rate."
    return ["## Decades of the learning rate", _picture(sweep(runs), beside, "sweep", words), forms(runs)]


def forms(runs: pd.DataFrame, briefly: bool = False) -> str:
    """Each form of the objective at its worst learning rate, in replicates that have all forms."""
    runs = whole(runs)
    table, (low, high) = worst(runs)
    said = [
        f"`{form}` {100 * accuracy:.1f} %"
        + ("" if briefly else f" (at {rate:g}; {tokens:.1f} tokens an answer, KL {kl:.3f})")
        for rate, form, accuracy, tokens, kl in table.itertuples(index=False)
    ]
    base = runs.loc[runs["arm"] == "base", "accuracy"]
    if len(base):
        said.append(f"the student before training {100 * base.mean():.1f} %")
    rates = f"the worst of the learning rates from {low:g} to {high:g}"
    replicates = runs["replicate"].nunique()
    mean = "of one replicate" if replicates == 1 else f"mean of {replicates} replicates"
    return f"Greedy accuracy, {mean}, at {rates}: {', '.join(said)}."


def _picture(figure: Figure, beside: Path, name: str, words: str) -> Html:
    path = beside.with_stem(f"{beside.stem}-{name}")
    write_svg(figure, path)
    return Html(f'<div class="claims"><img src="{path.name}" alt="{escaped(words)}"></div>')
