"""The page of a study: what its tracked files say, the claims first, then what is behind them.

``masters.study.study`` writes the files into ``data/results/NAME``. This module reads them and computes only
means over seeds, and the verdicts, so that these follow the margins and the rule of today. What is not there
yet is named, so that an unfinished study reads as one.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from masters.claims.comparisons import read_effects
from masters.claims.table import signed
from masters.claims.verdicts import judge_claims, judge_comparisons
from masters.experiments.arms import CHANGES, arm, settings_of
from masters.experiments.curriculum import learning_rate_shares
from masters.report.first_page import (
    CLAIM_COLUMNS,
    Judged,
    answer,
    brief,
    claim_cells,
    counts,
    disagreements,
    drawn,
    how,
    with_unit,
)
from masters.report.markup import Html, code, escaped, folded, link, table
from masters.report.study_beyond import forms, map_section, sweep_section
from masters.settings import Profile
from masters.study.effects import COLUMNS as MAP
from masters.study.plan import load_study
from masters.study.sweep import swept

if TYPE_CHECKING:
    from masters.study.study import Study

FILES = (
    *("comparisons.csv", "map.csv", "runs.csv", "costs.csv", "trials.csv", "tasks.csv", "registers.csv"),
    *("blind.csv", "machine.json"),
)
# Columns of costs.csv: what stands above the mean, decimals.
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

TRIAL = ("arm", "learning_rate", "policy_weight", "beta", "accuracy", "sampled_accuracy", "chosen")
# Columns of runs.csv: what stands above the mean, what it is multiplied by, decimals.
MEASURES = {
    "accuracy": ("Greedy accuracy, %", 100, 1),
    "sampled_accuracy": ("Sampled accuracy, %", 100, 1),
    "tokens": ("Tokens per response", 1, 1),
    "kl": ("KL to the base student, nats", 1, 3),
    "seconds": ("Seconds of training", 1, 0),
}


def study_page(study: "Study", profile: Profile, own: Judged, picture: Path) -> str:
    """Return a study's claims beside those of the reader's own run, its arms, tuning and machine, as MyST.

    Args:
        study: with those of ``FILES`` that are there; only rows that count are shown.
        profile: of the reader's run.
        own: the claims of that run.
        picture: where the picture is written, see :func:`masters.report.first_page.drawn`.

    Raises:
        ValueError: a file lacks a column.
    """
    name, folder, about = study.name, study.folder, study.plan.about
    make = command(name)
    missing = [file for file in FILES if not (folder / file).is_file()]
    if len(missing) == len(FILES):
        return f"{about}\n\n**Nothing of it is in this copy** yet: `{make}` runs it.\n"
    parts = [about]
    if missing:
        parts.append(f"Not there yet: {', '.join(missing)}. `{make}` goes on.")
    runs, trained = study.runs, settings_of_study(study)
    blind = blind_accuracies(folder)
    if found := judged(study):
        parts += _claims(study, found, runs, own, picture)
        parts.append(folded("Every comparison of these claims", _comparisons(found)))
    if len(runs):
        above = _above_base(runs)
        parts += [
            "## The arms",
            "Means over the replicates of each arm, and the standard deviation between replicates. What an "
            "arm is above `base` is taken within each replicate, so that arms with other replicates "
            "compare; arms of another student have none. *Blind* answers from the question's text alone.",
            _gains(above),
            _stage_shares(study),
            _arms(runs, above, trained, blind),
        ]
    if "map.csv" not in missing:
        parts += map_section(_read(folder / "map.csv", *MAP), picture, blind)
    parts += sweep_section(runs, picture)
    if "costs.csv" not in missing:
        words = (
            "Seconds of one process; the offline run pays for all its responses alone (C14). *As run* "
            "compares two programs: TRL trains the online run, one row per response. *At equal rates* gives "
            "its responses, scores and steps the seconds they take in the offline run of the same replicate."
        )
        parts += ["## What responses cost, generated offline and online", words, _costs(study.costs)]
    if "tasks.csv" not in missing:
        parts.append(folded("By task", _tasks(folder / "tasks.csv", runs, blind)))
    if "registers.csv" not in missing:
        parts.append(folded("By register of the answer", _registers(folder / "registers.csv", runs)))
    if "trials.csv" not in missing:
        trials = study.tried
        parts += ["## The trials", "Validation accuracy; verdicts use the test split only."]
        parts += [_edges(trials), folded("All trials", _trials(trials))]
    if "machine.json" not in missing:
        parts += ["## Where it ran", _machine(folder / "machine.json")]
    return "\n\n".join(filter(None, parts)) + "\n"


def settings_of_study(study: "Study") -> dict[str, str]:
    """Return what each arm of a study was trained with, tuning included, by the arm's name."""
    chosen = study.settings()
    words = settings_of(study.profile, list(chosen.values()))
    return {name: words[long] for name, long in chosen.items() if long in words}


def command(name: str) -> str:
    """What makes the rows of a study."""
    return "make study" if name == "study" else f"make study STUDY={name}"


def study_sentences(found: Mapping[str, Judged], runs: Mapping[str, pd.DataFrame]) -> str:
    """Return what the studies found, for the first page, as MyST; nothing where there is none.

    Args:
        found: as :func:`judged` returns them, by the names of the plans.
        runs: of the studies, those that count.
    """
    lines = []
    for name, study in found.items():
        tested = f"- [{study.title}]({name}.md) tested {counts(study.claims)}."
        lines.append(f"{tested} {_seeds(name, study.claims['seeds'].dropna())}")
        if len(swept(runs[name])):
            lines[-1] += f" {forms(runs[name], briefly=True)}"
    words = "Longer runs, with tuned arms and new models and responses for each seed, test the same claims:"
    return "\n".join([words, "", *lines, "", ""]) if lines else ""


def judged(study: "Study") -> Judged | None:
    """Return the claims of a study that measured some; None of another."""
    path = study.folder / "comparisons.csv"
    if not path.is_file():
        return None
    effects = read_effects(path)
    return Judged(study.plan.title, judge_claims(effects), effects, settings_of_study(study))


def _claims(study: "Study", found: Judged, runs: pd.DataFrame, own: Judged, picture: Path) -> list[str]:
    verdicts, name, frame = brief(own.claims), study.name, found.claims
    rows = []
    for row in frame.to_dict("records"):
        seeds = 0 if np.isnan(row["seeds"]) else int(row["seeds"])
        details = how(row, [command(name)], _behind(name, row, set(runs["arm"])))
        rows.append(
            [
                row["id"],
                row["verdict"],
                *claim_cells(row, found, details),
                _p_value(row["p_holm"]),
                with_unit(_number(row["smallest"], 1), row["unit"]),
                str(seeds or ""),
                verdicts.get(row["id"], ""),
            ]
        )
    header = ["", "Verdict", *map(Html, CLAIM_COLUMNS), Html("p<br>(Holm)"), Html("Smallest<br>detectable")]
    gap = found.effects["gap"].dropna()
    return [
        answer(found),
        f"Of the paper's {len(frame)} claims the study tested {counts(frame)}.",
        _seeds(name, frame["seeds"]),
        f"The large teacher answers {gap.iloc[0]:.1f} points more of the questions than the student before "
        "training: that is the gap of which effects are a share."
        if len(gap)
        else "",
        drawn(frame, picture),
        disagreements(frame),
        table([*header, "Seeds", own.title], rows),
        f"The table as {link(f'{name}/claims.csv', 'a file')}.",
    ]


def _seeds(name: str, seeds: pd.Series) -> str:
    """How many seeds the tested claims have, and whether that is all."""
    done = seeds[seeds > 0]
    if done.empty:
        return "No claim has a seed yet."
    fewest, most = int(done.min()), int(done.max())
    words = f"Seeds of each arm: {fewest}." if fewest == most else f"Seeds of an arm: {fewest} to {most}."
    plan, _ = load_study(name)
    if fewest < plan.few_seeds or most < plan.seeds:
        words += (
            f" **The study is not finished:** {plan.seeds} are planned for the main arms, {plan.few_seeds} "
            "for the others, and a verdict may still change."
        )
    if fewest < 3:
        words += " With one seed an interval speaks about other questions only, with two it is too narrow."
    return words


def _behind(name: str, row: Mapping[Any, Any], arms: set[str]) -> Html | None:
    """Links to the runs of a claim's arms, as far as they are there."""
    links = [link(f"#{_anchor(arm)}", arm) for arm in (row["treatment"], row["control"]) if arm in arms]
    return Html(f"Rows: {', '.join(links)}, in {link(f'{name}/runs.csv', 'runs.csv')}.") if links else None


def _comparisons(found: Judged) -> Html:
    rows = []
    for row in judge_comparisons(found.effects).to_dict("records"):
        low, high = (signed(row[name]) for name in ("effect_low", "effect_high"))
        sampled = ""
        if np.isfinite(row["sampled"]):
            sampled = (
                f"{signed(row['sampled'])}<br>{signed(row['sampled_low'])} to {signed(row['sampled_high'])}"
            )
        paper = with_unit(signed(row["paper_effect"]), row["unit"])
        rows.append(
            [
                row["id"],
                Html(f"{code(row['treatment'])} against {code(row['control'])}<br>{escaped(row['note'])}"),
                Html(f"{signed(row['effect'])} {escaped(row['unit'])}<br>{low} to {high}"),
                Html(sampled),
                Html("<br>".join(escaped(part) for part in (paper, row["cells"]) if part)),
                row["excludes_paper"],
                f"{row['margin']:.2f}",
                str(int(row["seeds"])),
                row["verdict"] or "shown only",
            ]
        )
    header = ["", "Arms", Html("Effect<br>95 % interval"), Html("Sampled<br>95 %, seeds only")]
    header += ["Paper's matched effect", "Excludes it?", "Margin", "Seeds", "Verdict if it were alone"]
    return table(header, rows)


def _stage_shares(study: "Study") -> str:
    """How much of the learning rate each stage gets, where it falls."""
    said = []
    for name in ("masters", "mid_then_large"):
        spec = arm(study.settings().get(name, name), study.profile)
        shares = learning_rate_shares(spec)
        words = ", ".join(
            f"{f'{spec.teachers[index]} ' if len(spec.teachers) > 1 else ''}r {ratio:g} {100 * share:.0f} %"
            for (index, ratio), share in shares.items()
        )
        said.append(f"in `{name}` {words}")
    return (
        f"The learning rate is {study.profile.distillation.lr_schedule}. Of its sum over the steps the "
        f"stages get, {'; '.join(said)}. In the paper it is constant and each of five stages gets 20 %."
    )


def blind_accuracies(folder: Path) -> pd.Series:
    """Return a study's blind accuracy as a fraction, by task and of ``all``; empty if not measured."""
    path = folder / "blind.csv"
    if not path.is_file():
        return pd.Series(dtype=float)
    return _read(path, "task", "accuracy").set_index("task")["accuracy"]


def _gains(above: pd.DataFrame) -> str:
    """How many arms are better than the student that they began with, in the mean of shared replicates."""
    above = above.drop(columns=["base", "mid", "large"], errors="ignore")
    if above.empty:
        return ""
    gains = above.mean()
    ends = gains.sort_values().iloc[[0, -1]]
    worst, best = (f"{gain:+.1f} points (`{name}`)" for name, gain in ends.items())
    return (
        f"Of {len(gains)} arms that train the student, {int((gains > 0).sum())} have a mean above that of "
        f"the student before training (`base`): from {worst} to {best}."
    )


def _above_base(runs: pd.DataFrame) -> pd.DataFrame:
    """Points above the student that an arm began with, ``(replicates, arms)``; not of another student."""
    wide = 100 * runs.pivot(index="replicate", columns="arm", values="accuracy").astype(float)
    if "base" not in wide:
        return pd.DataFrame()
    return wide[[name for name in map(str, wide) if "student=" not in name]].sub(wide["base"], axis=0)


def _costs(frame: pd.DataFrame) -> Html:
    rows = [
        [
            Html(code(str(arm))),
            *(_spread(rows[name], digits) for name, (_, digits) in COSTS.items()),
            _spread(100 * rows["accuracy"], 1),
        ]
        for arm, rows in frame.groupby("arm", sort=False)
    ]
    return table(["Arm", *(words for words, _ in COSTS.values()), "Accuracy, %"], rows)


def _arms(runs: pd.DataFrame, above: pd.DataFrame, trained: Mapping[str, str], blind: pd.Series) -> Html:
    rows = []
    for name, of_arm in ((str(name), rows) for name, rows in runs.groupby("arm", sort=False)):
        words = CHANGES[name][0] if name in CHANGES else ""
        each = "<br>".join(
            f"replicate {replicate}: {_number(100 * accuracy, 1)} %, {code(str(key))}"
            for replicate, accuracy, key in of_arm[["replicate", "accuracy", "key"]].itertuples(index=False)
        )
        about = f'<span id="{_anchor(name)}">{code(name)}</span> {escaped(words)}'
        rows.append(
            [
                Html(f"{about}<br><small>{escaped(trained.get(name, ''))}</small>"),
                _spread(above.get(name, pd.Series(dtype=float)), 1),
                *(_spread(scale * of_arm[column], digits) for column, (_, scale, digits) in MEASURES.items()),
                folded(str(len(of_arm)), Html(each)),
            ]
        )
    if "all" in blind:
        base = 100 * runs.loc[runs["arm"] == "base", "accuracy"].mean()
        score = 100 * blind["all"]
        rows.insert(0, ["blind: the question's text alone", _number(score - base, 1), _number(score, 1)])
        rows[0] += [""] * (len(MEASURES) + 3 - len(rows[0]))
    above_base = Html("Above base,<br>points")
    return table(["Arm", above_base, *(words for words, *_ in MEASURES.values()), "Runs"], rows)


def _tasks(path: Path, runs: pd.DataFrame, blind: pd.Series) -> Html:
    frame = _of(runs, _read(path, "replicate", "arm", "mode", "task", "correct"))
    wide = frame.pivot_table(index=["arm", "mode"], columns="task", values="correct", sort=False)
    rows = [
        [*map(str, names), *map(_percent, values)]
        for names, values in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    if len(blind):
        rows.insert(0, ["blind: the question's text alone", "", *map(_percent, blind.reindex(wide.columns))])
    return table(["Arm", "Answers", *(f"{task}, %" for task in wide.columns)], rows)


def _registers(path: Path, runs: pd.DataFrame) -> Html:
    names, values = ["arm", "mode", "register"], ["share", "correct", "tokens"]
    frame = _of(runs, _read(path, "replicate", *names, *values))
    means = frame.groupby(names, sort=False)[values].mean().reset_index()
    rows = [
        [str(arm), str(mode), str(register), _percent(share), _percent(correct), _number(tokens, 1)]
        for arm, mode, register, share, correct, tokens in means.itertuples(index=False)
    ]
    return table(["Arm", "Answers", "Register", "Share, %", "Right, %", "Tokens"], rows)


def _edges(trials: pd.DataFrame) -> str:
    """How many arms chose an end of the learning rates tried for them: beyond it may be a better one."""
    tried = trials.groupby("arm")["learning_rate"]
    chosen = trials["chosen"].astype(bool)
    least, most = (
        int((chosen & (trials["learning_rate"] == tried.transform(end))).sum()) for end in ("min", "max")
    )
    return (
        f"Of {int(chosen.sum())} tuned arms {least} chose the smallest learning rate that was tried for them "
        f"and {most} the largest, beyond which may be a better one."
    )


def _trials(trials: pd.DataFrame) -> Html:
    rows = [
        [
            str(arm),
            *("" if np.isnan(setting) else f"{setting:g}" for setting in (rate, weight, beta)),
            _percent(greedy),
            _percent(sampled),
            "chosen" if chosen else "",
        ]
        for arm, rate, weight, beta, greedy, sampled, chosen in trials[[*TRIAL]].itertuples(index=False)
    ]
    header = [
        "Arm",
        "Learning rate",
        "Policy weight",
        "Beta",
        "Greedy accuracy, %",
        "Sampled accuracy, %",
        "",
    ]
    return table(header, rows)


def _machine(path: Path) -> Html:
    about = json.loads(path.read_text(encoding="utf-8"))
    return table(["", ""], [[name.replace("_", " "), _words(value)] for name, value in about.items()])


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value)


def _read(path: Path, *columns: str) -> pd.DataFrame:
    frame = pd.read_csv(path)
    if lacking := sorted(set(columns) - set(frame)):
        raise ValueError(f"{path} has no column {', '.join(lacking)}: restore it with git, or delete it")
    return frame


def _of(runs: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that belong to some runs."""
    return frame.merge(runs[["replicate", "arm"]].astype({"replicate": frame["replicate"].dtype}))


def _anchor(arm: str) -> str:
    return "arm-" + re.sub(r"[^A-Za-z0-9]+", "-", arm)


def _spread(values: pd.Series, digits: int) -> str:
    """The mean, and the standard deviation where there is more than one value."""
    known = values.dropna()
    mean = _number(known.mean(), digits)
    return f"{mean} ± {_number(known.std(), digits)}" if len(known) > 1 else mean


def _number(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return _number(100 * value, 1)


def _p_value(p: float) -> str:
    return "under 0.001" if p < 0.001 else _number(p, 3)
