"""Tables and figures of a study's page: each function returns the values that the template shows."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from masters_book.figures.names import title_of
from masters_book.figures.study import effect_map, sweep
from masters_book.figures.style import Drawing, write_svg
from masters_book.results.intact import read_json
from masters_book.study.study import Study
from masters_book.study.sweep import swept, whole, worst

Table = tuple[list[str], list[list[str]]]  # header and rows

# Column of costs.csv: its heading and decimals.
COSTS = {
    "steps": ("Steps", 0),
    "responses": ("Responses generated", 0),
    "tokens": ("Tokens generated", 0),
    "generation": ("Generation, s", 0),
    "judging": ("Judging, s", 1),
    "scoring": ("Scoring, s", 1),
    "training": ("Training, s", 0),
    "total": ("Total as run, s", 0),
    "total_equal": ("Total at equal rates, s", 0),
}
# Column of runs.csv: its heading, factor and decimals.
MEASURES = {
    "accuracy": ("Greedy,\n%", 100, 1),
    "sampled_accuracy": ("Sampled,\n%", 100, 1),
    "tokens": ("Tokens", 1, 1),
    "kl": ("KL, nats", 1, 3),
    "seconds": ("Training,\ns", 1, 0),
}
TRIAL = {
    "arm": "Arm",
    "learning_rate": "Learning rate",
    "policy_weight": "Policy weight",
    "beta": "Beta",
    "accuracy": "Greedy accuracy, %",
    "sampled_accuracy": "Sampled accuracy, %",
    "chosen": "Chosen",
}
BLIND = "blind: the question's text alone"


def above_base(runs: pd.DataFrame) -> pd.DataFrame:
    """Return points above the student before training, ``(replicates, arms)``, of its arms."""
    wide = 100 * runs.pivot(index="replicate", columns="arm", values="accuracy").astype(float)
    if "base" not in wide:
        return pd.DataFrame()
    return wide[[name for name in map(str, wide) if "student=" not in name]].sub(wide["base"], axis=0)


def gains(above: pd.DataFrame) -> dict[str, Any]:
    """Return how many arms are above the student before training, and the ends of the range."""
    mean = above.drop(columns=["base", "mid", "large"], errors="ignore").mean()
    if mean.empty:
        return {}
    worst_arm, best_arm = ((name, f"{gain:+.1f}") for name, gain in mean.sort_values().iloc[[0, -1]].items())
    return {"number": len(mean), "above": int((mean > 0).sum()), "worst": worst_arm, "best": best_arm}


def arms(
    runs: pd.DataFrame,
    above: pd.DataFrame,
    trained: Mapping[str, str],
    blind: pd.Series,
    main: Sequence[str],
) -> dict[str, Any]:
    """Return the main arms and the others: means and standard deviations over replicates."""
    rows = []
    for name, of_arm in ((str(name), rows) for name, rows in runs.groupby("arm", sort=False)):
        each = of_arm[["replicate", "accuracy", "key"]].itertuples(index=False)
        measured = (
            _spread(factor * of_arm[column], digits) for column, (_, factor, digits) in MEASURES.items()
        )
        rows.append(
            {
                "name": name,
                "anchor": anchor(name),
                "trained": trained.get(name, ""),
                "cells": [_spread(above.get(name, pd.Series(dtype=float)), 1), *measured],
                "runs": [(f"replicate {number}: {_percent(score)} %", key) for number, score, key in each],
            }
        )
    header = ["Arm", "Above\nbase, points", *(words for words, *_ in MEASURES.values()), "Runs"]
    blindly: list[str] = []
    if "all" in blind:
        base = runs.loc[runs["arm"] == "base", "accuracy"].mean()
        blindly = [BLIND, _percent(blind["all"] - base), _percent(blind["all"])]
        blindly += [""] * (len(header) - len(blindly))
    return {
        "header": header,
        "main": sorted((row for row in rows if row["name"] in main), key=lambda row: main.index(row["name"])),
        "others": [row for row in rows if row["name"] not in main],
        "blind": blindly,
    }


def effect_section(study: Study, beside: Path, blind: pd.Series) -> dict[str, Any] | None:
    """Return where masking and rewards have an effect; None without a pair of arms.

    Args:
        study: its map must be measured, see :func:`masters_book.study.effects.measure_map`.
        beside: the figure is written beside this file.
        blind: accuracy of the blind baseline as a fraction, by task and for ``all`` questions; may be empty.
    """
    effects = study.tables.read("map.csv")
    if effects.empty:
        return None
    level = 100 * float(blind.get("all", 0.0))
    pairs = effects.drop_duplicates(["treatment", "control"])  # the usual setting is on every axis
    found = [
        {
            "name": effect,
            "pairs": len(rows),
            "above": int((rows["low"] > 0).sum()),
            "below": int((rows["high"] < 0).sum()),
            "least": rows["points"].min(),
            "most": rows["points"].max(),
            "half": rows["smallest"].median(),
            "every": rows["smallest"].max(),
        }
        for effect, rows in pairs.groupby("effect", sort=False)
    ]
    figure = _figure(effect_map(effects, level), beside, "map")
    return {"blind": level, "effects": found, "rows": effects.to_dict("records"), **figure}


def sweep_section(runs: pd.DataFrame, beside: Path) -> dict[str, Any] | None:
    """Return each objective over the learning rates; None without arms named by one.

    Args:
        runs: the runs that count.
        beside: the figure is written beside this file.
    """
    found = _worst_rates(runs)
    return found and found | _figure(sweep(runs), beside, "sweep")


def _worst_rates(runs: pd.DataFrame) -> dict[str, Any] | None:
    """Return each objective at its worst learning rate, in replicates that have all objectives."""
    if swept(runs).empty:
        return None
    runs = whole(runs)
    table, (low, high) = worst(runs)
    replicates = runs["replicate"].nunique()
    mean = "one replicate" if replicates == 1 else f"mean of {replicates} replicates"
    return {
        "words": f"{mean}, at the learning rate with the lowest mean, from {low:g} to {high:g}",
        "forms": [
            (
                form,
                f"{_percent(accuracy)} %",
                f"at {rate:g}; {tokens:.1f} tokens per answer" + ("" if np.isnan(kl) else f", KL {kl:.3f}"),
            )
            for rate, form, accuracy, tokens, kl in table.itertuples(index=False)
        ],
        "base": f"{_percent(runs.loc[runs['arm'] == 'base', 'accuracy'].mean())} %",
    }


def _figure(figure: Drawing, beside: Path, name: str) -> dict[str, str]:
    path = beside.with_stem(f"{beside.stem}-{name}")
    write_svg(figure, path)
    return {"image": path.name, "alt": figure.alt}


def costs(frame: pd.DataFrame) -> Table:
    """Return the costs of each arm, means over replicates."""
    rows = [
        [
            str(arm),
            *(_spread(rows[name], digits) for name, (_, digits) in COSTS.items()),
            _spread(100 * rows["accuracy"], 1),
        ]
        for arm, rows in frame.groupby("arm", sort=False)
    ]
    return ["Arm", *(words for words, _ in COSTS.values()), "Accuracy, %"], rows


def by_task(study: Study, runs: pd.DataFrame, blind: pd.Series) -> Table:
    """Return the accuracy of each arm on each question set."""
    frame = _of(runs, study.tables.read("tasks.csv"))
    wide = frame.pivot_table(index=["arm", "mode"], columns="task", values="correct", sort=False)
    shown = zip(wide.index, wide.to_numpy(), strict=True)
    rows = [[title_of(str(arm)), str(mode), *map(_percent, values)] for (arm, mode), values in shown]
    if len(blind):
        rows.insert(0, [BLIND, "", *map(_percent, blind.reindex(wide.columns))])
    return ["Arm", "Answers", *(f"{task}, %" for task in wide.columns)], rows


def by_register(study: Study, runs: pd.DataFrame) -> Table:
    """Return how often each arm answers in each register, how well and how long."""
    names, replicates = ["arm", "mode", "register"], runs.groupby("arm").size()
    frame = _of(runs, study.tables.read("registers.csv"))
    weighted = frame.assign(**{name: frame[name] * frame["share"] for name in ("correct", "tokens")})
    sums = weighted.groupby(names, sort=False)[["share", "correct", "tokens"]].sum()
    means = sums[["correct", "tokens"]].div(sums["share"], axis=0)
    # A register that a replicate lacks has a share of 0 there.
    of_arm = means.index.get_level_values("arm")
    means.insert(0, "share", sums["share"] / np.array([replicates[name] for name in of_arm], dtype=float))
    means = means.reset_index()
    rows = [
        [title_of(str(arm)), str(mode), str(register), _percent(share), _percent(correct), number(tokens, 1)]
        for arm, mode, register, share, correct, tokens in means.itertuples(index=False)
    ]
    return ["Arm", "Answers", "Register", "Share, %", "Correct, %", "Tokens"], rows


def trials(frame: pd.DataFrame) -> dict[str, Any]:
    """Return all trials, and how many arms chose the smallest or largest learning rate tried."""
    rates = frame.groupby("arm")["learning_rate"]
    chosen = frame["chosen"].astype(bool)
    rows = [
        [
            title_of(str(arm)),
            *(f"{setting:g}" for setting in settings),
            _percent(greedy),
            _percent(sampled),
            "yes" if best else "",
        ]
        for arm, *settings, greedy, sampled, best in frame[[*TRIAL]].itertuples(index=False)
    ]
    return {
        "tuned": int(chosen.sum()),
        "least": int((chosen & (frame["learning_rate"] == rates.transform("min"))).sum()),
        "most": int((chosen & (frame["learning_rate"] == rates.transform("max"))).sum()),
        "table": ([*TRIAL.values()], rows),
    }


def machine(path: Path) -> Table:
    """Return ``machine.json`` as a table."""
    return ["What", "Value"], [
        [name.replace("_", " "), _words(value)] for name, value in read_json(path).items()
    ]


def blind_accuracies(study: Study) -> pd.Series:
    """Return a study's blind accuracy as a fraction, by task and for ``all``; empty if not measured."""
    return study.tables.read("blind.csv").set_index("task")["accuracy"]


def anchor(arm: str) -> str:
    """Return the id of an arm's row in the page."""
    return "arm-" + re.sub(r"[^A-Za-z0-9]+", "-", arm)


def number(value: float, digits: int) -> str:
    """Return a number with its decimals; empty for NaN."""
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value)


def _of(runs: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table that belong to some runs."""
    return frame.merge(runs[["replicate", "arm"]].astype({"replicate": frame["replicate"].dtype}))


def _spread(values: pd.Series, digits: int) -> str:
    """Return the mean, and the standard deviation if there is more than one value."""
    known = values.dropna()
    mean = number(known.mean(), digits)
    return f"{mean} ± {number(known.std(), digits)}" if len(known) > 1 else mean


def _percent(value: float) -> str:
    return number(100 * value, 1)
