"""The page of the imitation study, from its tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from masters_book.figures.imitation import WAYS, imitation_figure
from masters_book.figures.names import title_of
from masters_book.figures.style import write_svg
from masters_book.imitation import plan
from masters_book.imitation.changes import direction, effects, helps, trend, verdicts
from masters_book.imitation.results import COMPARED, learned, missing
from masters_book.imitation.tables import FOLDER, tables
from masters_book.pages.rendering import fill
from masters_book.pages.study_tables import Table

# Verdicts, and how they read in a sentence.
DIRECTIONS = {
    "nearer": "nearer to {}",
    "farther": "farther from {}",
    "no change": "as far as before from {}",
    "undecided": "undecided for {}",
}
VERDICTS = {
    "helps": "these teachers help",
    "harms": "these teachers harm",
    "no help": "these teachers make no difference",
    "undecided": "these stay undecided",
}


def imitation_page(picture: Path, folder: Path = FOLDER) -> str:
    """Return the page's body and write its figure.

    Args:
        picture: file of the figure, in the book's ``generated/extra``.
        folder: folder of the study's tables.

    Raises:
        ValueError: a table is damaged.
    """
    changes = tables(folder).read("changes.csv")
    if any(tables(folder).read(name).empty for name in COMPARED):
        return fill("imitation.md", found=None, criteria=plan.CRITERIA)
    students, doses = verdicts(folder), tables(folder).read("teachers.csv")
    jsd = changes[(changes["divergence"] == "jsd") & (changes["kind"] == "all")]
    of_all = doses[doses["kind"] == "all"]
    jsd = jsd.merge(of_all[["way", "value", "dose"]], on=["way", "value"])
    mini = _mini(tables(folder).read("mini.csv"))
    figure = imitation_figure(students, jsd, mini[mini["ratio"] == plan.R_MAX])
    write_svg(figure, picture)
    done, lacking = missing(folder)["runs of learning"]
    found = effects(learned(folder))
    return fill(
        "imitation.md",
        found=_found(students) | _beside(students, jsd, of_all),
        layers=plan.TEACHER_LAYERS,
        ratio=f"{plan.R_MAX:g}",
        margin=plan.MARGIN,
        alt=figure.alt,
        image=picture.name,
        students=_students(students),
        doses=_doses(of_all),
        kinds=_kinds(changes),
        agree=_kinds_agree(students, changes),
        mini=_mini_table(mini),
        learning={
            "done": done,
            "all": done + lacking,
            "said": _said(found),
            "effects": _learning(found),
        },
        criteria=plan.CRITERIA,
    )


def _found(students: pd.DataFrame) -> dict[str, Any]:
    """Return what the first sentences of the page say."""
    correlation, p = trend(students)
    nearest, farthest = students.iloc[0], students.iloc[-1]
    falls = students[students["verdict"] == "nearer"]
    found = students["verdict"].value_counts()
    counts = [words.format(found[name]) for name, words in DIRECTIONS.items() if name in found]
    correlated = correlation < 0 and p < 0.05
    return {
        "verdicts": f"{', '.join(counts)} of {len(students)} students",
        "nearest": nearest.to_dict(),
        "farthest": farthest.to_dict(),
        "correlation": correlation,
        "p": p,
        "correlated": correlated,
        "depends": correlated and farthest["verdict"] == "nearer" and nearest["verdict"] != "nearer",
        "falls": len(falls),
        "temperature": float(students["temperature_matched"].mean()),
        # Without a control of so large a dose, nothing is established either.
        "softer": int((~(falls["temperature_high"] < 0)).sum()),
        "random": int((~(falls["random_high"] < 0)).sum()),
        "better_softer": int((falls["temperature_low"] > 0).sum()),
    }


def _beside(students: pd.DataFrame, jsd: pd.DataFrame, doses: pd.DataFrame) -> dict[str, Any]:
    """Return what was not planned: the temperature with the mask's entropy, by interpolation."""
    entropy = doses.set_index(["way", "value"])["entropy"].sort_index()
    masked = entropy["magnitude", plan.R_MAX]
    curve = pd.concat([pd.Series({1.0: entropy["whole", 0.0]}), entropy["temperature"]])
    at = float(np.interp(masked, curve, curve.index))
    softer = {
        (row["layers"], row["healed"], row["value"]): row["change"]
        for row in jsd[jsd["way"] == "temperature"].to_dict("records")
    }
    falls = students[students["verdict"] == "nearer"].to_dict("records")
    nearer = 0
    for row in falls:
        there = [0.0, *(softer[row["layers"], row["healed"], value] for value in curve.index[1:])]
        nearer += int(np.interp(at, curve.index, there) < row["change"])
    softened = np.interp(students["temperature_matched"].mean(), curve.index, curve)
    return {
        "entropies": (entropy["whole", 0.0], masked, softened),
        "equal": at,
        "equal_nearer": nearer,
    }


def _kinds_agree(students: pd.DataFrame, changes: pd.DataFrame) -> int:
    """Return how many students have the same verdict on texts, on questions, and on both together."""
    at = changes[(changes["way"] == "magnitude") & (changes["value"] == plan.R_MAX)]
    at = at[at["divergence"] == "jsd"]
    found = {
        (row["layers"], row["healed"], row["kind"]): direction(row["change"], row["low"], row["high"])
        for row in at.to_dict("records")
    }
    pooled = students[["layers", "healed", "verdict"]].itertuples(index=False, name=None)
    return sum(
        found[layers, healed, "text"] == found[layers, healed, "question"] == verdict
        for layers, healed, verdict in pooled
    )


def _effect(row: Any, prefix: str = "") -> str:
    change, low, high = (row[f"{prefix}{name}"] for name in ("change", "low", "high"))
    return f"{change:+.1f} %\n({low:+.1f} to {high:+.1f})" if change == change else ""


def _students(students: pd.DataFrame) -> Table:
    header = [
        "Layers",
        "Healed,\ntokens",
        "Distance,\nnats",
        f"Change at\nmask ratio {plan.R_MAX:g}",
        "Verdict",
    ]
    header += [f"Mask minus\n{words}" for words in ("temperature", "random", "Wanda")]
    rows = [
        [f"{row['layers']}", f"{row['healed']:,}", f"{row['distance']:.3f}", _effect(row), row["verdict"]]
        + [_effect(row, f"{control}_") for control in ("temperature", "random", "activation")]
        for row in students.to_dict("records")
    ]
    return header, rows


def _doses(doses: pd.DataFrame) -> Table:
    header = [
        "Teacher",
        "Ratio or\ntemperature",
        "Dose, nats",
        "Argmax\nchanged, %",
        "Entropy,\nnats",
        "Loss,\nnats",
    ]
    names = {"whole": "whole", **WAYS}
    rows = [
        [
            names[row["way"]],
            f"{row['value']:g}" if row["value"] else "",
            f"{row['dose']:.4f}",
            f"{100 * row['argmax_changed']:.1f}",
            f"{row['entropy']:.3f}",
            f"{row['loss']:.3f}",
        ]
        for row in doses.to_dict("records")
    ]
    return header, rows


def _kinds(changes: pd.DataFrame) -> Table:
    """Return the change at the paper's mask ratio per kind of held-out text and divergence."""
    at = changes[(changes["way"] == "magnitude") & (changes["value"] == plan.R_MAX)]
    shown = {"jsd": "JSD", "forward_kl": "forward KL", "reverse_kl": "reverse KL"}
    header = ["Layers", "Healed,\ntokens"]
    header += [f"{kind}s,\n{name}" for kind in ("text", "question") for name in shown.values()]
    rows = []
    for (layers, healed), of_student in at.groupby(["layers", "healed"]):
        cells = of_student.set_index(["kind", "divergence"])
        values = [_effect(cells.loc[(kind, name)]) for kind in ("text", "question") for name in shown]
        rows.append([f"{layers}", f"{healed:,}", *values])
    return header, rows


def _mini(mini: pd.DataFrame) -> pd.DataFrame:
    """Return distance and change in percent of the small vision-language models."""
    whole = mini[mini["ratio"] == 0].set_index(["replicate", "model"])["to_student"].rename("distance")
    joined = mini[mini["ratio"] > 0].join(whole, on=["replicate", "model"])
    return joined.assign(change=100 * (joined["to_student"] / joined["distance"] - 1))


def _mini_table(mini: pd.DataFrame) -> Table:
    header = [
        "Teacher",
        "Ratio",
        "Replicates",
        "Dose, nats",
        "Distance, nats",
        "Mean change, %",
        "Lowest",
        "Highest",
    ]
    rows = [
        [
            title_of(str(model)),
            f"{ratio:g}",
            str(len(some)),
            f"{some['from_whole'].mean():.4f}",
            f"{some['distance'].mean():.4f}",
        ]
        + [f"{value:+.1f}" for value in (some["change"].mean(), some["change"].min(), some["change"].max())]
        for (model, ratio), some in mini.groupby(["model", "ratio"], sort=False)
    ]
    return header, rows


def _said(found: pd.DataFrame) -> list[str]:
    """Return what came out at the last step, a sentence per start and verdict."""
    if found.empty:
        return []
    last = found.assign(verdict=helps(found))
    last = last[(last["step"] == plan.STEPS) & (last["control"] == "whole") & (last["arm"] != "step length")]
    said = []
    for (start, verdict), rows in last.groupby(["start", "verdict"], sort=False):
        of = plan.STARTS[str(start)]
        effects_said = [f"{row['arm']} {_effect(row)}".replace("\n", " ") for row in rows.to_dict("records")]
        said.append(
            f"From the {start} start ({of.layers} layers, {of.healed:,} tokens), {VERDICTS[str(verdict)]}, "
            "by the final JSD to the whole teacher against learning from it unchanged: "
            f"{'; '.join(effects_said)}."
        )
    return said


def _learning(found: pd.DataFrame) -> Table | None:
    if found.empty:
        return None
    header = ["Start", "Arm", "Against", "Step", "JSD to the whole\nteacher, nats", "Change", "Verdict"]
    header.append("Next-token loss,\narm and control")
    rows = [
        [
            row["start"],
            row["arm"],
            row["control"],
            f"{row['step']}",
            f"{row['before']:.3f} to {row['after']:.3f}",
            _effect(row),
            said,
            f"{row['loss']:.3f}\n{row['loss_control']:.3f}",
        ]
        for row, said in zip(found.to_dict("records"), helps(found), strict=True)
    ]
    return header, rows
