"""The first page's result: how many claims came out how, as a picture and as a table, and how to get each.

One idea: the page says of every claim what its file says, those that were not tested included, and beside it
where the runs are shown and the commands that make them.
"""

import html
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from masters.claim_rows import VERDICTS, ClaimRow
from masters.claims_figure import claims
from masters.drawing import write_svg
from masters.markup import Html, code, escaped, folded, link, plain, table
from masters.settings import load_profile

# The part of each notebook that a verdict rests on.
RESULTS = "our-numbers-beside-the-paper-s"


def headline(
    profile: str, frame: pd.DataFrame, picture: Path, studies: Mapping[str, pd.DataFrame] | None = None
) -> str:
    """What came out, as MyST: of the first study where there is one, with what a profile gave beside it.

    Args:
        profile: its name.
        frame: its claims, of :func:`masters.claim_rows.read_frame`.
        picture: where the picture is written, see :func:`drawn`.
        studies: the claims of longer runs, by their titles; the first is drawn.
    """
    settings = load_profile(profile)
    (title, drawn_claims), *beside = {**(studies or {}), f"Your run ({profile})": frame}.items()
    leading = {row["id"]: row for row in drawn_claims.to_dict("records")}
    verdicts = [brief(of_run) for _, of_run in beside]
    rows = []
    for row in frame.to_dict("records"):
        lead = leading.get(row["id"])
        rows.append(
            [
                row["id"],
                lead["verdict"] if lead else "",
                *(of_run.get(row["id"], "") for of_run in verdicts),
                Html(escaped(row["statement"]) + how(row, commands(profile, row, settings.seeds))),
                effect(lead) if lead else "",
                with_unit((lead or row)["paper"], row["unit"]),  # of the comparison that is shown
            ]
        )
    # Verdicts before all else: what a narrow page cuts off is in the picture too.
    header = ["", _wrapped(title), *(_wrapped(name) for name, _ in beside)]
    header += ["The paper says", Html("Effect<br>95 % interval"), "Paper"]
    parts = [
        f"The picture and the effects in the table are of: {plain(title)}.",
        drawn(drawn_claims, picture),
        f"This copy of the book was built at profile `{profile}`: {plain(settings.description)}",
        f"Of the paper's {len(frame)} claims this profile tested {counts(frame)}.",
        f"What it can show: {plain(settings.shows)}",
        f"What it cannot: {plain(settings.cannot_show)}",
        table(header, rows),
        f"The claims of this profile, with their margins and limits, as {link('claims.csv', 'a file')}.",
    ]
    return "\n\n".join(parts) + "\n"


def brief(frame: pd.DataFrame) -> dict[str, Html]:
    """Verdict and effect of each claim in a few words, by its id."""
    return {
        row["id"]: Html("<br>".join(escaped(row[name]) for name in ("verdict", "ours") if row[name]))
        for row in frame.to_dict("records")
    }


def _wrapped(title: str) -> Html:
    return Html("<br>".join(map(escaped, textwrap.wrap(title, 14))))


def counts(frame: pd.DataFrame) -> str:
    """How many claims were tested and what came out, in words."""
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
        What shows the one that fits, with all of it in words for those who cannot see it.
    """
    narrow = path.with_stem(f"{path.stem}-narrow")
    for file, slim in ((path, False), (narrow, True)):
        write_svg(claims(frame, slim), file)
    told = ["The effect of each claim here beside the paper's."]
    for row in frame.to_dict("records"):
        ours = f"{with_unit(row['ours'], row['unit'])}, 95 % interval {interval(row)}" if row["ours"] else ""
        paper = f"paper {with_unit(row['paper'], row['unit'])}" if row["paper"] else "no figure in the paper"
        told.append(f"{row['id']} {row['verdict']}: {', '.join(filter(None, (ours, paper)))}.")
    wide = f'<img src="{path.name}" alt="{html.escape(" ".join(told))}">'
    slim_source = f'<source media="(max-width: 600px)" srcset="{narrow.name}">'
    return Html(f'<div class="claims"><picture>{slim_source}{wide}</picture></div>')


def how(row: Mapping[Any, Any], made_by: Sequence[str], rows: Html | None = None) -> Html:
    """Where a verdict comes from: the notebook that shows its runs, and the commands that make them.

    Args:
        row: of the claims.
        made_by: the commands.
        rows: a link to the rows, where there is one.
    """
    shown = row["where"]
    lines = ["Shown in " + link(f"notebooks/{shown}.html#{RESULTS}", shown.replace("_", " ")) + "."]
    if rows:
        lines.append(rows)
    lines += map(code, made_by)
    return folded("rows and commands", Html("<br>".join(map(str, lines))))


def commands(profile: str, row: Mapping[Any, Any], seeds: int) -> list[str]:
    """What makes the runs of a claim at a profile."""
    arms = dict.fromkeys((row["treatment"], row["control"]))
    each = " for each seed below " + str(seeds) if seeds > 1 else ""
    return [f"masters train {shlex.join([profile, name])} --seed 0{each and '  #' + each}" for name in arms]


def effect(row: Mapping[Any, Any]) -> Html:
    """Our effect and below it its 95 % interval; nothing where nothing was measured."""
    measured = with_unit(row["ours"], row["unit"])
    return Html(f"{escaped(measured)}<br>{escaped(interval(row))}") if measured else Html()


def interval(row: Mapping[Any, Any]) -> str:
    """The 95 % interval in words, empty where there is none."""
    return ClaimRow(*(row[name] for name in ClaimRow._fields)).interval


def with_unit(value: str, unit: str) -> str:
    """A number with its unit; nothing where there is no number."""
    return value and f"{value} {unit}"
