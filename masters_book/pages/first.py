"""The book's first page: what was found in three sentences, a figure and a table.

Every claim is shown with its verdict, also if it was not tested. The verdicts of the reader's run, with its
commands, are in a fold; the page of the study has settings and limits.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from masters.runtime.files import ROOT
from masters.settings import Profile
from masters_book.claims.claims import HELPS
from masters_book.claims.table import VERDICTS, shown, signed, span
from masters_book.claims.verdicts import judge_comparisons
from masters_book.figures.claims import claims_figure, overview
from masters_book.figures.names import title_of
from masters_book.figures.style import Drawing, write_png, write_svg
from masters_book.pages.rendering import fill
from masters_book.pages.study_tables import number
from masters_book.study.provenance import commit_and_date

PREVIEW, PREVIEW_WIDTH = "preview.png", 1200  # what links to the book show, in pixels
RESULTS = "our-numbers-beside-the-paper-s"  # heading of each notebook's results


@dataclass(frozen=True)
class Judged:
    """The claims of the study, or of the reader's own run.

    Attributes:
        title: for headings.
        claims: from :func:`masters_book.claims.verdicts.judge_claims`.
        effects: from :func:`masters_book.claims.comparisons.measure`.
        settings: what each arm was trained with (:func:`masters_book.analysis.trained_with.settings_of`).
        page: page of the study; empty for the reader's run.
        seeds: how many replicates the study has, in words.
    """

    title: str
    claims: pd.DataFrame
    effects: pd.DataFrame
    settings: Mapping[str, str]
    page: str = ""
    seeds: str = ""

    @cached_property
    def compared(self) -> list[dict[Any, Any]]:
        """Every comparison, judged alone."""
        return judge_comparisons(self.effects).to_dict("records")


def headline(lead: Judged, places: pd.DataFrame | None, image: Path) -> str:
    """Return what stands above everything else: edition, three answers, and the figure of the claims.

    Args:
        lead: the study, or the reader's run without one.
        places: the study's ``map.csv``, if any.
        image: file of the figure, see :func:`draw_claims`; beside it, a PNG for previews of links.
    """
    drawn = draw_claims(lead.claims, image, overview)
    write_png(overview(lead.claims), image.with_name(PREVIEW), PREVIEW_WIDTH)
    return fill("headline.md", edition=edition(), abstract=abstract(lead, places), **drawn)


def claims_section(profile: Profile, own: Judged, study: Judged | None = None) -> str:
    """Return the claims as a table: of the study if it has any; the verdicts of all runs are in a fold.

    Args:
        profile: of the reader's run.
        own: the reader's run.
    """
    lead, *others = [study, own] if study else [own]
    by_id = {row["id"]: row for row in lead.claims.to_dict("records")}
    verdicts = [brief(each.claims) for each in (lead, *others)]
    page = f"{lead.page or 'notebooks/7_claims'}.html"
    claims, rows = [], []
    for row in own.claims.to_dict("records"):
        name, runs = row["id"], commands(profile.name, row, profile.seeds)
        how = {"commands": runs, "folder": "notebooks/", "results": RESULTS}
        claims.append({**by_id.get(name, row), "address": f"{page}#{name.lower()}"})
        rows.append({"of": row, "how": how, "verdicts": [each.get(name, "") for each in verdicts]})
    return fill(
        "claims.md",
        lead=lead.title,
        page=lead.page,
        seeds=lead.seeds,
        counts=counts(lead.claims),
        claims=claims,
        titles=["", *(each.title for each in (lead, *others))],
        rows=rows,
        answers=_answers(lead, *others),
        own_counts=counts(own.claims),
        above=above_base(own),
        disagreements=disagreements(lead.claims),
        profile=profile,
    )


def abstract(judged: Judged, places: pd.DataFrame | None = None) -> list[tuple[str, str]]:
    """Return three questions, each with a short answer: does it help, what helps, what hurts.

    Args:
        judged: the claims.
        places: as in :func:`headline`.
    """
    masters, _, between = _helps(judged)
    whether = answer(judged) or "It was not tested whether training with Masters helps."
    if masters is not None and between is not None:
        numbers = f"{_effect(masters)} over the student before training, {_effect(between)} over distillation"
        whether = f"{in_short(judged).removesuffix('.')}: {numbers} on as many responses."
    rows = [row for row in judged.claims.to_dict("records") if row["kind"] == "gain"]
    helps = [
        f"{row['statement']} ({'; '.join([_of_claim(row), *notes(row, judged.compared)])})"
        for row in rows
        if row["verdict"] == "supported"
    ]
    harmful = [row for row in rows if row["effect_high"] < 0]
    established = [_below(row) for row in harmful if row["verdict"] == "reversed"]
    others = [_below(row) for row in harmful if row["verdict"] != "reversed"]
    hurts = "; ".join(established) + "." if established else "No claim is reversed."
    if others:
        hurts += f" {'; '.join(others)}."
    gains, losses = _beyond_zero(places)
    tested = sum(row["verdict"] != "not tested" for row in rows)
    rest = "No claim that something improves accuracy was tested."
    if tested:
        rest = f"{len(helps)} of {tested} tested claims that something improves accuracy are supported."
    return [
        ("Does it help?", whether),
        ("What helps?", " ".join([*(each.replace(". (", " (") + "." for each in helps), rest, *gains])),
        ("What hurts?", " ".join([hurts, *losses])),
    ]


def _below(row: Mapping[Any, Any]) -> str:
    words = f"{title_of(row['treatment'])} scores below {title_of(row['control'])} ({_of_claim(row)}"
    if row["verdict"] == "reversed":
        return f"{words})"
    less = (
        "less than the margin" if row["effect"] > -row["margin"] else "not significant among so many claims"
    )
    return f"{words}; {less})"


def notes(row: Mapping[Any, Any], compared: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Return what limits a claim's comparison, and the effects of those that are only shown beside it."""
    arms, found = (row["treatment"], row["control"]), []
    for each in compared:
        if each["id"] == row["id"] and each["note"]:
            if each["role"] == "shown":
                effect = f"{shown(each['effect'], each['unit'])} {each['unit']} ({span(each)})"
                found.append(f"{each['note']}: {effect}")
            elif (each["treatment"], each["control"]) == arms:
                found.append(each["note"])
    return found


def _beyond_zero(places: pd.DataFrame | None) -> tuple[list[str], list[str]]:
    """Return how often masking and rewards gain, and lose, on the map of settings; nothing where never."""
    if places is None:
        return [], []
    gains: list[str] = []
    losses: list[str] = []
    for effect, pairs in places.drop_duplicates(["treatment", "control"]).groupby("effect", sort=False):
        for beyond, found in ((pairs[pairs["low"] > 0], gains), (pairs[pairs["high"] < 0], losses)):
            if len(beyond):
                most = beyond.iloc[int(beyond["points"].abs().argmax())]
                arms = f"{title_of(most['treatment'])} against {title_of(most['control'])}"
                words = f"most of all {arms}: {signed(most['points'])} points"
                found.append(f"{effect} in {len(beyond)} of {len(pairs)} pairs of arms ({words})")
    return (
        [f"On the map of settings, not corrected, intervals above zero: {'; '.join(gains)}."]
        if gains
        else [],
        [f"On the map of settings, not corrected, intervals below zero: {'; '.join(losses)}."]
        if losses
        else [],
    )


def _effect(row: Mapping[Any, Any]) -> str:
    return f"{signed(row['effect'])} points ({span(row)})"


def _of_claim(row: Mapping[Any, Any]) -> str:
    return f"{row['id']}: {row['ours']} {row['unit']}, {row['low']} to {row['high']}"


def edition() -> dict[str, str]:
    """Return version, commit and date of this copy, the license, and how to cite paper and repository."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = cited["preferred-citation"]
    authors = ", ".join(f"{each['given-names']} {each['family-names']}" for each in paper["authors"])
    number = paper["identifiers"][0]["value"]
    commit, date = commit_and_date()
    return {
        "version": str(cited["version"]),
        "commit": commit[:10],
        "date": date,
        "license": cited["license"],
        "paper": f"{authors}: {paper['title']}. {paper['collection-title']}, {paper['year']}. {number}.",
        "paper_address": f"https://arxiv.org/abs/{number.removeprefix('arXiv:')}",
        "this": f"{cited['authors'][0]['name']}: {cited['title']}. Version {cited['version']}.",
    }


def run_claims(own: Judged, profile: Profile) -> str:
    """Return the claims of a run as HTML, for its notebook."""
    rows = []
    for row in own.claims.to_dict("records"):
        how = {"commands": commands(profile.name, row, profile.seeds), "folder": ""}
        after = (number(row["smallest"], 1), p_value_words(row["p_holm"]))
        rows.append(claim_row(row, own, after, how))
    return fill("run_claims.html", rows=rows)


def p_value_words(p: float) -> str:
    """Return a p-value with three decimals; empty for NaN."""
    return "under 0.001" if p < 0.001 else number(p, 3)


def run_summary(own: Judged, profile: Profile) -> str:
    """Return what a run found as HTML, for its notebook."""
    groups = own.claims.groupby("verdict", sort=False)["id"]
    return fill(
        "run_summary.html",
        answers=_answers(own),
        above=above_base(own),
        disagreements=disagreements(own.claims),
        by_verdict=[(verdict, len(names), ", ".join(names)) for verdict, names in groups],
        cannot_show=profile.cannot_show,
    )


def _answers(*runs: Judged) -> list[tuple[str, str]]:
    return [(each.title, words) for each in runs if (words := answer(each))]


def answer(judged: Judged) -> str:
    """Return whether Masters helps the student, in a few sentences; empty if it was not run."""
    masters, unmasked, between = _helps(judged)
    if masters is None:
        return ""
    verb = _by_side(masters, "effect", "helps", "harms", "has no established effect")
    words = f"Training with Masters {verb}: {_points(masters)} over the student before training."
    if unmasked is not None and between is not None:
        found = _by_side(between, "effect", "they help", "they harm", "no established effect")
        words += (
            f" Distillation on as many responses without mask and rewards gives {_points(unmasked)}. Mask "
            f"and rewards together change it by {_points(between)}: {found}."
        )
    trained = judged.settings.get("masters")
    return f"{words} Masters was trained with {trained}." if trained else words


def in_short(judged: Judged) -> str:
    """Return the same in one sentence without numbers; empty if it was not run."""
    rows = _helps(judged)
    masters, between = rows[0], rows[2]
    if masters is None or between is None:
        return ""
    helps = _by_side(masters, "effect", "helps", "harms", "has no established effect on")
    neither = "do not measurably change"
    add = _by_side(between, "effect", "raise", "lower", neither)
    link = "but" if helps == "helps" and add != "raise" else "and"
    return (
        f"Training with Masters {helps} the student, {link} mask and rewards {add} the score of plain "
        "distillation, each at its own learning rate."
    )


def _helps(judged: Judged) -> list[dict[Any, Any] | None]:
    """Return the comparisons of Masters and of distillation alone with the student before, and of the two."""
    rows = {
        (row["treatment"], row["control"]): row
        for row in judged.effects[judged.effects["id"] == "helps"].to_dict("records")
    }
    return [rows.get((each.treatment, each.control)) for each in HELPS]


def _by_side(row: Mapping[Any, Any], name: str, above: str, below: str, neither: str) -> str:
    """Return a word by where the interval lies: above zero, below zero, or neither."""
    return above if row[f"{name}_low"] > 0 else below if row[f"{name}_high"] < 0 else neither


def _points(row: Mapping[Any, Any]) -> str:
    greedy = f"{signed(row['effect'])} points ({span(row)}"
    sampled = f"; sampled {signed(row['sampled'])}, {span(row, 'sampled')}"
    return f"{greedy}{sampled if np.isfinite(row['sampled']) else ''})"


def above_base(own: Judged) -> dict[str, int]:
    """Return how many trained arms of a run score above the student before training; empty if unknown."""
    rows = own.effects[own.effects["id"] == "above base"]
    if rows.empty:
        return {}
    signs = {"above": rows["effect"] > 0, "sure": rows["effect_low"] > 0, "below": rows["effect_high"] < 0}
    return {"arms": len(rows), **{name: int(those.sum()) for name, those in signs.items()}}


def disagreements(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the claims on which greedy and sampled answers disagree, with the effects of both."""
    return [(row["id"], with_titles(row["disagree"])) for row in frame.to_dict("records") if row["disagree"]]


def with_titles(words: str) -> str:
    """Return words about pairs of arms with the arms' titles."""
    return re.sub(
        r"(^|; )(\S+) against (\S+):",
        lambda found: f"{found[1]}{title_of(found[2])} against {title_of(found[3])}:",
        words,
    )


def claim_row(
    row: Mapping[Any, Any],
    judged: Judged,
    after: Sequence[str],
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a row of a table of claims, for the macro ``claims``.

    Args:
        row: of the claims.
        judged: the study or run that it belongs to.
        after: cells right of the paper's effect.
        how: ``commands`` of the runs; ``rows`` and ``file``, links to results; ``folder`` of the notebooks,
            relative to the page.
    """
    compared = [each for each in judged.compared if each["id"] == row["id"]]
    arms = (row["treatment"], row["control"])
    of_arms = [each for each in compared if (each["treatment"], each["control"]) == arms]
    return {
        **row,
        "after": after,
        "how": {"folder": "notebooks/", "results": RESULTS, **how},
        "trained": dict.fromkeys(judged.settings[name] for name in arms if name in judged.settings),
        "notes": [each["note"] for each in of_arms if each["note"] and each["role"] != "shown"],
        "differs": any(each["disagree"] for each in of_arms),
        "beside": [each for each in compared if each["role"] == "shown"],
    }


def brief(frame: pd.DataFrame) -> dict[str, str]:
    """Return verdict and effect of each claim, by its id."""
    rows = frame.to_dict("records")
    return {row["id"]: "\n".join(filter(None, (row["verdict"], row["ours"]))) for row in rows}


def counts(frame: pd.DataFrame) -> dict[str, Any]:
    """Return how many claims there are, how many were tested, and how many have each verdict."""
    found = {verdict: int((frame["verdict"] == verdict).sum()) for verdict in VERDICTS}
    tested = len(frame) - found.pop("not tested")
    return {"all": len(frame), "tested": tested, "verdicts": list(found.items())}


def draw_claims(
    frame: pd.DataFrame, path: Path, draw: Callable[..., Drawing] = claims_figure
) -> dict[str, str]:
    """Draw the claims for wide and for narrow screens.

    Args:
        frame: the claims.
        path: SVG file of the wide figure; the narrow one is beside it.
        draw: the figure.

    Returns:
        ``image`` and ``narrow``, the names of the files, ``alt`` and ``caption``.
    """
    narrow, figure = path.with_stem(f"{path.stem}-narrow"), draw(frame)
    write_svg(figure, path)
    write_svg(draw(frame, narrow=True), narrow)
    return {"image": path.name, "narrow": narrow.name, "alt": figure.alt, "caption": figure.caption}


def commands(profile: str, row: Mapping[Any, Any], seeds: int) -> list[str]:
    """Return the commands that make the runs of a claim at a profile."""
    arms = dict.fromkeys((row["treatment"], row["control"]))
    each = f"  # for each seed below {seeds}" if seeds > 1 else ""
    return [f"masters train {shlex.join([profile, name])} --seed 0{each}" for name in arms]
