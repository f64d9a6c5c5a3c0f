"""The first page's result: whether the method helps, how many claims came out how, and how to get each.

Every claim stands here with what its file says, those that were not tested included, the settings of the two
arms that were compared, and the commands that make their runs.
"""

import html
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from masters.claims.claims import HELPS
from masters.claims.table import VERDICTS, ClaimRow, signed
from masters.claims.verdicts import disagree, judge_comparisons
from masters.figures.claims import claims_figure
from masters.figures.style import write_svg
from masters.report.markup import Html, code, escaped, folded, link, plain, table
from masters.settings import Profile

# The part of each notebook that a verdict rests on.
RESULTS = "our-numbers-beside-the-paper-s"
# Columns of a table of claims, from the verdict on.
CLAIM_COLUMNS = (
    "The paper says",
    "Compared",
    "Effect<br>95 % interval",
    "Sampled answers<br>95 %, seeds only",
    "Share of<br>the gap",
    "Paper's<br>matched effect",
    "Excludes the<br>paper's effect?",
)


@dataclass(frozen=True)
class Judged:
    """The claims of one study, or of the reader's own run.

    Attributes:
        title: its name for the reader.
        claims: as :func:`masters.claims.verdicts.judge_claims` returns them.
        effects: as :func:`masters.claims.comparisons.measure` returns them.
        settings: what each arm was trained with, by the arm's name
            (:func:`masters.experiments.arms.settings_of`).
    """

    title: str
    claims: pd.DataFrame
    effects: pd.DataFrame
    settings: Mapping[str, str]


def headline(profile: Profile, own: Judged, picture: Path, studies: Sequence[Judged] = ()) -> str:
    """Return what came out, as MyST: of the first study where there is one, with the reader's run beside it.

    Args:
        profile: of the reader's run.
        own: the reader's run.
        picture: where the picture is written, see :func:`drawn`.
        studies: longer runs; the first is drawn, and its effects stand in the table.
    """
    lead, *beside = [*studies, own]
    by_id = {row["id"]: row for row in lead.claims.to_dict("records")}
    verdicts = [brief(each.claims) for each in beside]
    rows = []
    for row in own.claims.to_dict("records"):
        shown = by_id.get(row["id"], row)
        rows.append(
            [
                row["id"],
                shown["verdict"],
                *(of_run.get(row["id"], "") for of_run in verdicts),
                *claim_cells(shown, lead, how(row, commands(profile.name, row, profile.seeds))),
            ]
        )
    header = ["", wrapped(lead.title), *(wrapped(each.title) for each in beside), *map(Html, CLAIM_COLUMNS)]
    parts = [
        "**Does Masters help the student?** Greedy accuracy, 95 % intervals over seeds and questions:",
        "\n".join(f"- {words}" for each in (lead, *beside) if (words := answer(each))),
        above_base(own),
        f"The picture and the effects in the table show {plain(lead.title)}. Both arms of a claim stand with "
        "what they were trained with.",
        drawn(lead.claims, picture),
        disagreements(lead.claims),
        f"This copy of the book was built at profile `{profile.name}`: {plain(profile.description)}",
        f"Of the paper's {len(own.claims)} claims this profile tested {counts(own.claims)}.",
        f"What it can show: {plain(profile.shows)}",
        f"What it cannot: {plain(profile.cannot_show)}",
        table(header, rows),
        f"The claims of this profile, with their margins and limits, as {link('claims.csv', 'a file')}.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def answer(judged: Judged) -> str:
    """Return whether Masters helps the student, in one sentence of MyST; nothing where it was not run."""
    rows = {
        (row["treatment"], row["control"]): row
        for row in judged.effects[judged.effects["id"] == "helps"].to_dict("records")
    }
    masters, unmasked, between = (rows.get((each.treatment, each.control)) for each in HELPS)
    if masters is None:
        return ""
    words = f"*{plain(judged.title)}:* {_verb(masters)}, {_points(masters)} over the student before training"
    if unmasked is not None and between is not None:
        words += (
            "; distillation on the same number of responses without mask and rewards gives "
            f"{_points(unmasked)}, and Masters minus that is {_points(between)}, so {_beyond(between)}"
        )
    trained = judged.settings.get("masters")
    return f"{words} (Masters with {plain(trained)})." if trained else f"{words}."


def _verb(row: Mapping[Any, Any]) -> str:
    if row["effect_low"] > 0:
        return "training by Masters helps"
    if row["effect_high"] < 0:
        return "training by Masters harms"
    return "training by Masters has no established effect"


def _beyond(row: Mapping[Any, Any]) -> str:
    """What masking and rewards add to distillation, on greedy answers, and on sampled ones if they differ."""
    said = [
        "add to it"
        if low > 0
        else "take away from it"
        if high < 0
        else "add nothing that these runs establish"
        for low, high in ((row[f"{name}_low"], row[f"{name}_high"]) for name in ("effect", "sampled"))
    ]
    differing = f" (on sampled answers they {said[1]})" if disagree(row) else ""
    return f"masking and rewards {said[0]}{differing}"


def _points(row: Mapping[Any, Any]) -> str:
    greedy = f"{signed(row['effect'])} points ({_range(row, 'effect')})"
    if not np.isfinite(row["sampled"]):
        return greedy
    return f"{greedy}, sampled {signed(row['sampled'])} ({_range(row, 'sampled')})"


def _range(row: Mapping[Any, Any], name: str) -> str:
    return f"{signed(row[f'{name}_low'])} to {signed(row[f'{name}_high'])}"


def above_base(own: Judged) -> str:
    """Return how many trained arms of the reader's run score above the student before training."""
    rows = own.effects[own.effects["id"] == "above base"]
    if rows.empty:
        return ""
    above, sure = int((rows["effect"] > 0).sum()), int((rows["effect_low"] > 0).sum())
    below = int((rows["effect_high"] < 0).sum())
    return (
        f"Of {len(rows)} arms that train the student in {plain(own.title.lower())}, {above} score above it "
        f"on greedy answers: {sure} with an interval above zero, and {below} have one below zero."
    )


def disagreements(frame: pd.DataFrame) -> str:
    """Return the claims for which greedy and sampled answers say different things; nothing without any."""
    rows = frame[frame["disagree"] != ""]
    if rows.empty:
        return ""
    lines = [f"- {row['id']}: {plain(row['disagree'])}" for row in rows.to_dict("records")]
    return "\n".join(
        [
            "Verdicts rest on greedy answers. For these claims the sampled answers say something else "
            "(points, intervals of sampled answers over seeds alone):",
            "",
            *lines,
        ]
    )


def claim_cells(row: Mapping[Any, Any], judged: Judged, details: Html) -> list[str]:
    """Return the cells of a claim's row under :data:`CLAIM_COLUMNS`."""
    beside = judge_comparisons(judged.effects).to_dict("records") if len(judged.effects) else []
    beside = [each for each in beside if each["id"] == row["id"]]
    pair = ("treatment", "control")
    note = "".join(
        f"<br><small>{escaped(each['note'])}</small>"
        for each in beside
        if each["note"] and each["role"] != "shown" and all(each[name] == row[name] for name in pair)
    )
    return [
        Html(escaped(row["statement"]) + details),
        Html(compared(row, judged.settings) + note),
        Html(effect(row) + "".join(_shown(each, row) for each in beside if each["role"] == "shown")),
        _sampled(row),
        "" if np.isnan(row["share"]) else f"{row['share']:+.0f} %".replace("+0", "0").replace("-0", "0"),
        Html(
            "<br>".join(
                escaped(part) for part in (with_unit(row["paper"], row["unit"]), row["cells"]) if part
            )
        ),
        row["excludes_paper"],
    ]


def _shown(each: Mapping[Any, Any], row: Mapping[Any, Any]) -> str:
    """A comparison that stands beside the one that decides."""
    number = signed if row["unit"] != "times" else "{:.1f}".format
    low, high = (number(each[f"effect_{end}"]) for end in ("low", "high"))
    against = "" if each["control"] == row["control"] else f", against {code(each['control'])}"
    return f"<br><small>{escaped(each['note'])}{against}: {number(each['effect'])} ({low} to {high})</small>"


def compared(row: Mapping[Any, Any], settings: Mapping[str, str]) -> Html:
    """Return the two arms of a row, and below them what each was trained with, once if that is the same."""
    arms = (row["treatment"], row["control"])
    trained = dict.fromkeys(escaped(settings[name]) for name in arms if name in settings)
    small = f"<br><small>{'<br>'.join(trained)}</small>" if trained else ""
    return Html(f"{code(arms[0])} against {code(arms[1])}{small}")


def _sampled(row: Mapping[Any, Any]) -> Html:
    if np.isnan(row["sampled"]):
        return Html()
    mark = "<br><strong>differs</strong>" if row["disagree"] else ""
    return Html(f"{signed(row['sampled'])} points<br>{_range(row, 'sampled')}{mark}")


def brief(frame: pd.DataFrame) -> dict[str, Html]:
    """Return verdict and effect of each claim in a few words, by its id."""
    return {
        row["id"]: Html("<br>".join(escaped(row[name]) for name in ("verdict", "ours") if row[name]))
        for row in frame.to_dict("records")
    }


def wrapped(title: str) -> Html:
    """Return a title as a narrow column's heading."""
    return Html("<br>".join(map(escaped, textwrap.wrap(title, 14))))


def counts(frame: pd.DataFrame) -> str:
    """Return how many claims were tested and what came out, in words."""
    number = {verdict: int((frame["verdict"] == verdict).sum()) for verdict in VERDICTS}
    tested = len(frame) - number.pop("not tested")
    return f"{tested}: " + ", ".join(f"**{count} {verdict}**" for verdict, count in number.items())


def drawn(frame: pd.DataFrame, path: Path) -> Html:
    """Draw the claims, for wide and for narrow screens; the same bytes for the same claims.

    Args:
        frame: the claims.
        path: of the wide picture, an SVG file in the folder that is copied to where the page is; the narrow
            one is beside it.

    Returns:
        HTML that shows the one that fits, with all of it in words for those who cannot see it.
    """
    narrow = path.with_stem(f"{path.stem}-narrow")
    for file, slim in ((path, False), (narrow, True)):
        write_svg(claims_figure(frame, slim), file)
    words = ["The effect of each claim here beside the paper's."]
    for row in frame.to_dict("records"):
        ours = f"{with_unit(row['ours'], row['unit'])}, 95 % interval {interval(row)}" if row["ours"] else ""
        paper = f"paper {with_unit(row['paper'], row['unit'])}" if row["paper"] else "no figure in the paper"
        words.append(f"{row['id']} {row['verdict']}: {', '.join(filter(None, (ours, paper)))}.")
    wide = f'<img src="{path.name}" alt="{html.escape(" ".join(words))}">'
    slim_source = f'<source media="(max-width: 600px)" srcset="{narrow.name}">'
    return Html(f'<div class="claims"><picture>{slim_source}{wide}</picture></div>')


def how(row: Mapping[Any, Any], made_by: Sequence[str], rows: Html | None = None) -> Html:
    """Return where a verdict comes from: the notebook that shows its runs, its limits, the commands.

    Args:
        row: of the claims.
        made_by: the commands.
        rows: a link to the rows, where there is one.
    """
    shown = row["where"]
    lines = ["Shown in " + link(f"notebooks/{shown}.html#{RESULTS}", shown.replace("_", " ")) + "."]
    lines.append(escaped(f"Margin: {row['margin']:.2f} {row['unit']}. {row['limits']}"))
    if rows:
        lines.append(rows)
    lines += map(code, made_by)
    return folded("limits, rows and commands", Html("<br>".join(map(str, lines))))


def commands(profile: str, row: Mapping[Any, Any], seeds: int) -> list[str]:
    """Return the commands that make the runs of a claim at a profile."""
    arms = dict.fromkeys((row["treatment"], row["control"]))
    each = " for each seed below " + str(seeds) if seeds > 1 else ""
    return [f"masters train {shlex.join([profile, name])} --seed 0{each and '  #' + each}" for name in arms]


def effect(row: Mapping[Any, Any]) -> Html:
    """Return our effect and below it its 95 % interval; nothing where nothing was measured."""
    measured = with_unit(row["ours"], row["unit"])
    return Html(f"{escaped(measured)}<br>{escaped(interval(row))}") if measured else Html()


def interval(row: Mapping[Any, Any]) -> str:
    """Return the 95 % interval in words, empty where there is none."""
    return ClaimRow(*(row[name] for name in ClaimRow._fields)).interval


def with_unit(value: str, unit: str) -> str:
    """Return a number with its unit; nothing where there is no number."""
    return value and f"{value} {unit}"
