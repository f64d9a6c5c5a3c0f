"""The page of a study, from its tracked files: its result, its claims, and what is behind them.

The files are in ``data/results/NAME`` (:mod:`masters_book.study.tables`). This module computes only means
over seeds and the verdicts, so that these follow today's margins and rule. Missing files are named.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from masters_book.analysis.trained_with import settings_of
from masters_book.claims.comparisons import SAME_RUN, name_among
from masters_book.claims.verdicts import judge_claims
from masters_book.pages import study_tables as tables
from masters_book.pages.first import (
    Judged,
    answer,
    brief,
    claim_row,
    counts,
    disagreements,
    draw_claims,
    in_short,
    p_value_words,
)
from masters_book.pages.rendering import fill
from masters_book.pages.study_tables import blind_accuracies
from masters_book.study.study import COMPARED_BY_COST, Study

FILES = (
    *("comparisons.csv", "map.csv", "runs.csv", "costs.csv", "trials.csv", "tasks.csv", "registers.csv"),
    *("blind.csv", "machine.json"),
)


def study_page(study: Study, own: Judged, image: Path) -> str:
    """Return a study's claims beside those of the reader's run, its arms, tuning and machine.

    Only rows that count are shown. Figures are written beside ``image``.

    Raises:
        ValueError: a file is damaged.
    """
    runs = study.runs
    costs = set(study.plan.arms()) >= COMPARED_BY_COST
    files = [file for file in FILES if costs or file != "costs.csv"]
    missing = [file for file in files if not (study.folder / file).is_file()]
    return fill(
        "study.md",
        own=own.title,
        nothing=len(missing) == len(files),
        about=study.plan.about,
        missing=missing,
        study=_claims(study, runs, own, image),
        parts=_parts(study, runs, missing, image),
    )


def _parts(study: Study, runs: pd.DataFrame, missing: list[str], image: Path) -> dict[str, Any]:
    """Return the sections below the claims; those without results are empty."""
    blind = blind_accuracies(study)

    def of(name: str, section: Any, *arguments: Any) -> Any:
        return None if name in missing else section(*arguments)

    folded = {
        "By task": of("tasks.csv", tables.by_task, study, runs, blind),
        "By register of the answer": of("registers.csv", tables.by_register, study, runs),
    }
    return {
        "arms": _arms(study, runs, blind) if len(runs) else None,
        "map": of("map.csv", tables.effect_section, study, image, blind),
        "sweep": tables.sweep_section(runs, image),
        "costs": of("costs.csv", lambda: tables.costs(study.costs)),
        "folded": [(summary, table) for summary, table in folded.items() if table],
        "trials": of("trials.csv", lambda: tables.trials(study.tried)),
        "machine": of("machine.json", tables.machine, study.folder / "machine.json"),
    }


def settings_of_study(study: Study) -> dict[str, str]:
    """Return what each arm of a study was trained with, tuned settings included, by the arm's name."""
    chosen = study.settings()
    words = settings_of(study.profile, list(chosen.values()))
    of_arm = {name: words[long] for name, long in chosen.items() if long in words}
    return of_arm | {name: of_arm[there] for name in SAME_RUN if (there := name_among(name, of_arm))}


def judged(study: Study) -> Judged | None:
    """Return the claims of a study; None if it has measured none."""
    if not (study.folder / "comparisons.csv").is_file():
        return None
    effects = study.tables.read("comparisons.csv")
    claims = judge_claims(effects)
    seeds = _seeds(study, claims["seeds"].dropna())
    return Judged(study.plan.title, claims, effects, settings_of_study(study), "study", seeds)


def _claims(study: Study, runs: pd.DataFrame, own: Judged, image: Path) -> dict[str, Any]:
    found = judged(study)
    if found is None:
        return {"claims": None}
    verdicts, arms = brief(own.claims), set(runs["arm"])
    rows = []
    for row in found.claims.to_dict("records"):
        seeds = str(int(row["seeds"])) if row["seeds"] > 0 else ""
        shown = filter(None, (name_among(row[side], arms) for side in ("treatment", "control")))
        links = [(f"#{tables.anchor(each)}", each) for each in shown]
        how = {"commands": ["make study"], "rows": links, "file": "study/runs.csv"}
        smallest = (
            f"\ndetects {row['smallest']:.1f} {row['unit']}" if row["smallest"] == row["smallest"] else ""
        )
        test = f"p {p_value_words(row['p_holm'])}{smallest}\n{seeds} replicates" if seeds else ""
        rows.append(claim_row(row, found, [test, verdicts.get(row["id"], "")], how))
    gap = found.effects["gap"].dropna()
    return {
        "short": in_short(found),
        "answer": answer(found),
        "seeds": found.seeds,
        "gap": f"{gap.iloc[0]:.1f}" if len(gap) else "",
        "comparisons": found.compared,
        "claims": {
            "counts": counts(found.claims),
            "figure": draw_claims(found.claims, image),
            "disagreements": disagreements(found.claims),
            "rows": rows,
        },
    }


def _seeds(study: Study, seeds: pd.Series) -> str:
    """Return how many seeds the tested claims have, and whether that is all."""
    done = seeds[seeds > 0]
    if done.empty:
        return "No claim has a replicate yet."
    fewest, most = int(done.min()), int(done.max())
    words = (
        f"Replicates of each arm: {fewest}."
        if fewest == most
        else f"Replicates of an arm: {fewest} to {most}."
    )
    refused = study.refused()
    few, main = study.plan.few_seeds, study.plan.seeds
    if study.missing():
        words += (
            f" The study is not finished: {main} are planned for the main arms, {few} for the others, and a "
            "verdict may still change."
        )
    if refused:
        least = 100 * (study.plan.teacher_at_least or 0)
        words += (
            f" Not used (replicates are counted from 0): {', '.join(map(str, refused))}. There the large "
            f"teacher answers less than {least:g} % of the validation questions, or no more than the mid "
            "teacher; others take their place."
        )
    if fewest < 3:
        words += (
            " With one replicate, an interval covers other questions only; with two it is wide, and still "
            "covers less than it says."
        )
    return words


def _arms(study: Study, runs: pd.DataFrame, blind: pd.Series) -> dict[str, Any]:
    above = tables.above_base(runs)
    return {
        "gains": tables.gains(above),
        **tables.arms(runs, above, settings_of_study(study), blind, study.plan.main),
    }
