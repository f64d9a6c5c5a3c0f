"""The page of a study: what the tracked files of the long run say, the claims first, then what is behind.

``masters.study`` writes the files into ``data/results/NAME``. This module reads them and computes nothing
but means over seeds, and the verdicts, so that these follow the margins and the rule of today. What is not
there yet is named, so that a study half done reads as one.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from masters.arms import CHANGES
from masters.claims_page import brief, counts, drawn, effect, how, with_unit
from masters.markup import Html, code, escaped, folded, link, table
from masters.study_beyond import forms, map_section, sweep_section
from masters.study_map import COLUMNS as MAP
from masters.study_plan import load_study
from masters.study_sweep import swept
from masters.verdicts import judge_claims, read_effects

if TYPE_CHECKING:
    from masters.study import Study

FILES = (
    *("comparisons.csv", "map.csv", "runs.csv", "costs.csv", "trials.csv", "tasks.csv", "registers.csv"),
    "machine.json",
)
# Columns of costs.csv: what stands above the mean, decimals.
COSTS = {
    "steps": ("Steps", 0),
    "responses": ("Responses made", 0),
    "tokens": ("Tokens made", 0),
    "generation": ("Generation, s", 0),
    "judging": ("Judging, s", 1),
    "scoring": ("Scoring, s", 1),
    "training": ("Training, s", 0),
    "total": ("In all, s", 0),
}

TRIAL = ("arm", "learning_rate", "policy_weight", "accuracy", "sampled_accuracy", "chosen")
# Columns of runs.csv: what stands above the mean, what it is multiplied by, decimals.
MEASURES = {
    "accuracy": ("Greedy accuracy, %", 100, 1),
    "sampled_accuracy": ("Sampled accuracy, %", 100, 1),
    "tokens": ("Tokens a response", 1, 1),
    "kl": ("KL to the base student, nats", 1, 3),
    "seconds": ("Seconds of training", 1, 0),
}


def study_page(study: "Study", profile: str, own: pd.DataFrame, picture: Path) -> str:
    """A study's claims beside those of the reader's own run, its arms, its tuning and its machine, as MyST.

    Args:
        study: with those of ``FILES`` that are there; of their rows those that count are shown.
        profile: that the reader ran.
        own: its claims, of :func:`masters.claim_rows.read_frame`.
        picture: where the picture is written, see :func:`masters.claims_page.drawn`.

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
    runs = study.runs
    if "comparisons.csv" not in missing:
        frame = judge_claims(read_effects(folder / "comparisons.csv"))
        parts += _claims(name, frame, runs, profile, own, picture)
        parts.append(folded("Every comparison of these claims", _comparisons(folder / "comparisons.csv")))
    if len(runs):
        above = _above_base(runs)
        parts += [
            "## The arms",
            "Means over the replicates that an arm has, and the standard deviation between them. What an arm "
            "is above `base` is taken within each replicate, so that arms with other replicates compare.",
            _gains(above),
            _arms(runs, above),
        ]
    if "map.csv" not in missing:
        parts += map_section(_read(folder / "map.csv", *MAP), picture)
    parts += sweep_section(runs, picture)
    if "costs.csv" not in missing:
        words = "Seconds of one process, with what the responses took if they serve this run alone (C14)."
        parts += [
            "## What responses cost, made beforehand and meanwhile",
            words,
            _costs(study.costs),
        ]
    if "tasks.csv" not in missing:
        parts.append(folded("By task", _tasks(folder / "tasks.csv", runs)))
    if "registers.csv" not in missing:
        parts.append(folded("By register of the answer", _registers(folder / "registers.csv", runs)))
    if "trials.csv" not in missing:
        trials = study.tried
        parts += ["## The trials", "Accuracies on the validation split, of which no verdict knows."]
        parts += [_edges(trials), folded("All trials", _trials(trials))]
    if "machine.json" not in missing:
        parts += ["## Where it ran", _machine(folder / "machine.json")]
    return "\n\n".join(parts) + "\n"


def command(name: str) -> str:
    """What makes the rows of a study."""
    return "make study" if name == "study" else f"make study STUDY={name}"


def study_sentences(frames: Mapping[str, pd.DataFrame], runs: Mapping[str, pd.DataFrame]) -> str:
    """What the studies found, for the first page, as MyST; nothing where there is none.

    Args:
        frames: as :func:`judged` returns them.
        runs: of the studies, those that count.
    """
    found = []
    for name, frame in frames.items():
        title = load_study(name)[0].title
        found.append(
            f"- [{title}]({name}.md) tested {counts(frame)}. {_seeds(name, frame['seeds'].dropna())}"
        )
        if len(swept(runs[name])):
            found[-1] += f" {forms(runs[name], briefly=True)}"
    words = "Longer runs, with tuned arms and new models and responses for each seed, test the same claims:"
    return "\n".join([words, "", *found, "", ""]) if found else ""


def judged(folders: Mapping[str, Path]) -> dict[str, pd.DataFrame]:
    """The claims of those studies that measured some, by the name of the plan, as their pages have them."""
    return {
        name: judge_claims(read_effects(folder / "comparisons.csv"))
        for name, folder in folders.items()
        if (folder / "comparisons.csv").is_file()
    }


def _claims(
    name: str, frame: pd.DataFrame, runs: pd.DataFrame, profile: str, own: pd.DataFrame, picture: Path
) -> list[str]:
    verdicts = brief(own)
    rows = []
    for row in frame.to_dict("records"):
        unit = row["unit"]
        seeds = 0 if np.isnan(row["seeds"]) else int(row["seeds"])
        rows.append(
            [
                row["id"],
                row["verdict"],
                Html(
                    escaped(row["statement"])
                    + how(row, [command(name)], _behind(name, row, set(runs["arm"])))
                ),
                effect(row),
                _p_value(row["p_holm"]),
                with_unit(_number(row["smallest"], 1), unit),
                str(seeds or ""),
                with_unit(row["paper"], unit),
                verdicts.get(row["id"], ""),
            ]
        )
    header = ["", "Verdict", "The paper says", Html("Effect<br>95 % interval"), Html("p<br>(Holm)")]
    header += [Html("Smallest<br>detectable"), "Seeds", "Paper", f"Your run ({profile})"]
    return [
        f"Of the paper's {len(frame)} claims the study tested {counts(frame)}.",
        _seeds(name, frame["seeds"]),
        drawn(frame, picture),
        table(header, rows),
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


def _comparisons(path: Path) -> Html:
    numbers = ["effect", "effect_low", "effect_high"]
    frame = _read(path, "id", "treatment", "control", "unit", *numbers, "seeds", "verdict")
    rows = []
    for row in frame.to_dict("records"):
        effect, low, high = (_number(row[name], 1) for name in numbers)
        pair = Html(f"{code(row['treatment'])} against {code(row['control'])}")
        shown = Html(f"{effect} {escaped(row['unit'])}<br>{low} to {high}")
        rows.append([row["id"], pair, shown, str(row["seeds"]), row["verdict"]])
    return table(["", "Arms", Html("Effect<br>95 % interval"), "Seeds", "Verdict if it were alone"], rows)


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


def _arms(runs: pd.DataFrame, above: pd.DataFrame) -> Html:
    rows = []
    for arm, of_arm in runs.groupby("arm", sort=False):
        name = str(arm)
        words = CHANGES[name][0] if name in CHANGES else ""
        each = "<br>".join(
            f"replicate {replicate}: {_number(100 * accuracy, 1)} %, {code(str(key))}"
            for replicate, accuracy, key in of_arm[["replicate", "accuracy", "key"]].itertuples(index=False)
        )
        rows.append(
            [
                Html(f'<span id="{_anchor(name)}">{code(name)}</span> {escaped(words)}'),
                _spread(above.get(name, pd.Series(dtype=float)), 1),
                *(_spread(scale * of_arm[column], digits) for column, (_, scale, digits) in MEASURES.items()),
                folded(str(len(of_arm)), Html(each)),
            ]
        )
    above_base = Html("Above base,<br>points")
    return table(["Arm", above_base, *(words for words, *_ in MEASURES.values()), "Runs"], rows)


def _tasks(path: Path, runs: pd.DataFrame) -> Html:
    frame = _of(runs, _read(path, "replicate", "arm", "mode", "task", "correct"))
    wide = frame.pivot_table(index=["arm", "mode"], columns="task", values="correct", sort=False)
    rows = [
        [*map(str, names), *map(_percent, values)]
        for names, values in zip(wide.index, wide.to_numpy(), strict=True)
    ]
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
            *("" if np.isnan(setting) else f"{setting:g}" for setting in (rate, weight)),
            _percent(greedy),
            _percent(sampled),
            "chosen" if chosen else "",
        ]
        for arm, rate, weight, greedy, sampled, chosen in trials[[*TRIAL]].itertuples(index=False)
    ]
    header = ["Arm", "Learning rate", "Policy weight", "Greedy accuracy, %", "Sampled accuracy, %", ""]
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
