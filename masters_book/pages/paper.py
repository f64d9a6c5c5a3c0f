"""The page "Paper and ours": each table of the paper with the study's arms beside its rows.

:data:`TABLES` names the arm that corresponds to each row, or says in words why there is none. The numbers are
the paper's, from ``data/paper``, and those of the study's runs that count. Levels are not comparable: models
and questions differ. So each number also has its effect, the difference from another row of the same table.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from masters_book.claims.claims import CLAIMS
from masters_book.claims.evidence import PAIRS
from masters_book.claims.table import signed
from masters_book.figures.names import title_of
from masters_book.pages.rendering import fill
from masters_book.pages.study_tables import Table
from masters_book.results.paper import paper_table
from masters_book.study.study import Study

NOT_RUN = "not run: "
DAYS = "section5_days"
_NO_MIX = f"{NOT_RUN}the study has equal shares and one model alone"
_NO_SMALL = f"{NOT_RUN}the study has teachers of two sizes"
_NO_RATIO = f"{NOT_RUN}the study has other ratios"
_NO_TINY = f"{NOT_RUN}the study has students of two sizes"
_METHOD = f"{NOT_RUN}this method is not part of the package"
_STUDENTS = tuple(PAIRS)
_MIDDLE = ("Qwen2.5-VL-3B", "Qwen3-VL-4B", "InternVL3.5-4B")
_SMALL = ("Qwen3-VL-2B", "InternVL3-2B", "InternVL3.5-2B")


@dataclass(frozen=True)
class Beside:
    """A table of the paper, and what corresponds to its rows here.

    Attributes:
        name: file in ``data/paper``, without ending.
        title: heading of its section.
        arms: the arm of each row, or why there is none; rows are named by their first columns and spaces.
        keys: columns that name a row.
        across: column whose values become columns, each with the mean of its scores.
        over: the row that each row's effect is taken from; None: the first of the table for all others.
        note: what to know when reading it.
    """

    name: str
    title: str
    arms: Mapping[str, str]
    keys: Sequence[str]
    across: str = ""
    over: Mapping[str, str] | None = None
    note: str = ""

    def rows(self) -> pd.DataFrame:
        """Return the paper's numbers by row: its scores, or a mean per value of ``across``.

        Raises:
            ValueError: a row has no arm and no words.
        """
        table = paper_table(self.name)
        names = table[[*self.keys]].map(_word).agg(" ".join, axis=1)
        if lacking := sorted(set(names) - set(self.arms)):
            raise ValueError(f"masters_book/pages/paper.py says nothing of {self.name}: {lacking[0]}")
        scores = table.drop(columns=[*self.keys, *filter(None, [self.across])])
        if self.across:
            mean = scores["avg"] if "avg" in scores else scores.mean(axis=1)
            scores = mean.groupby([names, table[self.across]], sort=False).first().unstack(sort=False)
        return scores.set_axis(names if not self.across else scores.index)

    def effects(self) -> dict[str, str]:
        """Return the row that each row's effect is taken from; rows without an effect are left out."""
        first, *others = self.arms
        return dict.fromkeys(others, first) if self.over is None else dict(self.over)

    def claims(self) -> list[str]:
        """Return the claims whose margins come from this table."""
        tables = {
            claim.id: {
                t for c in claim.comparisons if c.paper for t in (c.paper.table, c.paper.control_table)
            }
            for claim in CLAIMS
        }
        return [name for name, used in tables.items() if self.name in used]


TABLES = (
    Beside(
        "table1_components",
        "Table 1, components",
        {
            "base": "base",
            "+large_teacher": "naive",
            "+mask_progressive": "masked",
            "+reward_feedback": "masters",
        },
        ["variant"],
        across="student",
        note="Our masked arm learns from eight responses per question.",
    ),
    Beside(
        "table2_teacher_scaling",
        "Table 2, a mid teacher first",
        {
            "base": "base",
            "+large_teacher": "naive",
            "+mid_teacher": "naive+teachers=mid,large",
            "+mask_progressive": "masked+teachers=mid,large",
            "+reward_feedback": "mid_then_large",
            "-mid_teacher": "masters",
        },
        ["variant"],
        across="student",
        note="Each row adds to the row above; the last one takes the mid teacher away again.",
    ),
    Beside(
        "table3_masters_students",
        "Table 3, students before and after Masters",
        {name: "mid" for name in _STUDENTS}
        | {f"{name}-Masters": "masters+student=mid" for name in _STUDENTS}
        | {name: "base" for name in _MIDDLE}
        | {f"{name}-Masters": "masters" for name in _MIDDLE}
        | {f"{name}{suffix}": _NO_TINY for name in _SMALL for suffix in ("", "-Masters")},
        ["model"],
        over={f"{name}-Masters": name for name in (*_STUDENTS, *_MIDDLE, *_SMALL)},
        note="Sizes correspond by their order only: 7B and 8B to our mid model, 3B and 4B to our student. So "
        "one arm of ours stands beside several rows.",
    ),
    Beside(
        "table4_large_models",
        "Table 4, large models",
        dict.fromkeys(PAIRS.values(), "large"),
        ["model"],
        over={},
        note="Our one large teacher stands beside all of them.",
    ),
    Beside(
        "table5a_rmax",
        "Table 5a, first mask ratio",
        {"0": "r_max=0.0", "0.2": "masters", "0.4": "r_max=0.4"}
        | dict.fromkeys(("0.1", "0.3", "0.5"), _NO_RATIO),
        ["r_max"],
        note="Columns are the paper's teachers. Its rows 0 and 0.2 also differ in the mid teacher, see "
        "claim C5; ours differ in the mask alone.",
    ),
    Beside(
        "table5b_teacher_combinations",
        "Table 5b, combinations of teachers",
        {
            "38B": "teachers=mid",
            "78B": "masters",
            "38B+78B": "mid_then_large",
            **dict.fromkeys(("14B+38B", "14B+78B", "14B+38B+78B"), _NO_SMALL),
        },
        ["teachers"],
        note="38B and 78B correspond to our mid and large teacher by their order only.",
    ),
    Beside(
        "table5c_response_source",
        "Table 5c, whose responses",
        {
            "0 8": "source=0:8",
            "4 4": "masters",
            "8 0": "source=8:0",
            **dict.fromkeys(("2 6", "3 5", "5 3", "6 2"), _NO_MIX),
        },
        ["student_responses", "teacher_responses"],
    ),
    Beside(
        "table5d_components",
        "Table 5d, components one by one",
        {
            "naive no no no": "naive",
            "naive no yes no": "naive_multi",
            "naive no yes yes": "r_max=0.0",
            "naive yes yes yes": "mid_then_large+r_max=0.0",
            "mask_progressive no no no": "naive+r_max=0.2",
            "mask_progressive no yes no": "masked",
            "mask_progressive no yes yes": "masters",
            "mask_progressive yes yes yes": "mid_then_large",
        },
        ["masking", "mid_teacher", "multi_response", "reward_feedback"],
    ),
    Beside(
        "table5e_rewards",
        "Table 5e, rewards",
        {
            "acc_rule_based": "accuracy_only",
            "acc": f"{NOT_RUN}needs a language model as judge",
            "distill": "distillation_only",
            "acc+distill_unnormalised": "unnormalised",
            "acc+distill": "masters",
            "teacher_InternVL3.5-38B": "large",
        },
        ["reward"],
        note="The paper's accuracy reward comes from a language model, ours from a rule in every arm of "
        "this table.",
    ),
    Beside(
        "table5f_other_methods",
        "Table 5f, other methods",
        {
            "DistiLLM-7B no": "alone=skewed_kl",
            "DistiLLM-7B yes": "masters=skewed_kl",
            **{
                f"{name} {on}": _METHOD
                for name in ("LLaVA-KD-7B", "VLsI-7B", "RIL-8B")
                for on in ("no", "yes")
            },
        },
        ["method", "masters"],
        over={f"{name} yes": f"{name} no" for name in ("DistiLLM-7B", "LLaVA-KD-7B", "VLsI-7B", "RIL-8B")},
        note="Ours is the divergence of DistiLLM without its schedule.",
    ),
    Beside(
        DAYS,
        "Section 5, days of training",
        {"offline": "own_accuracy", "online": "online"},
        ["responses"],
        note="Paper: days, the online figure is its estimate. Ours: seconds of one process at equal rates.",
    ),
)

# What the paper shows as a plot: the notebook with ours.
FIGURES = (
    ("Figure 1: accuracy by size", "6_benchmark_evaluation"),
    ("Figure 2: mask ratio and losses over training", "2_masking_ablations"),
    ("Figure 5: responses per question", "3_response_caching"),
    ("Figure 6: inference time", "6_benchmark_evaluation"),
)


def paper_page(study: Study) -> str:
    """Return the page's body.

    Raises:
        ValueError: a row of the paper has no entry in :data:`TABLES`, or a file is damaged.
    """
    accuracies, planned = _wide(study.runs, "replicate", "accuracy", 100), study.plan.arms()
    seconds = _wide(study.costs, "seed", "total_equal", 1)
    sections = [
        {
            "title": of.title,
            "note": of.note,
            "claims": of.claims(),
            "named": len(of.keys),
            "table": _beside(of, seconds if of.name == DAYS else accuracies, planned),
            "cells": None if of.name == DAYS else _cells(of.name),
        }
        for of in TABLES
    ]
    return fill("paper.md", sections=sections, figures=FIGURES)


def _beside(of: Beside, ours: pd.DataFrame, planned: Collection[str]) -> Table:
    """Return a table: what names a row, the paper's numbers, our arm, and its result."""
    paper, over, days = of.rows(), of.effects(), of.name == DAYS
    short = of.across or len(paper.columns) <= 5
    shown = paper if short else pd.DataFrame(index=paper.index)
    if not of.across and len(paper.columns) > 1:
        shown = shown.assign(**{f"mean of {len(paper.columns)}": paper.mean(axis=1)})
    # On the replicates that all arms of the table have, so that levels and differences agree.
    shared = ours[[arm for arm in ours if arm in of.arms.values()]].dropna()
    header = [_label(name) for name in of.keys]
    header += [*map(_label, map(str, shown)), "arm"]
    header.append(f"study\n{len(shared)} replicates" if shared.columns.size else "study")
    rows = []
    for name, values in shown.iterrows():
        key, arm = str(name), of.arms[str(name)]
        before = over.get(key)
        earlier = dict(shown.loc[before]) if before else {}
        cells = [
            _with_effect(f"{value:g}" if days else f"{value:.1f}", value, earlier.get(column), days)
            for column, value in values.items()
        ]
        found = _ours(shared, arm, of.arms.get(before or "", ""), days, planned)
        names = key.split(" ") if len(of.keys) > 1 else [key]
        rows.append([*map(_label, names), *cells, title_of(arm), found])
    return header, rows


def _ours(wide: pd.DataFrame, arm: str, before: str, days: bool, planned: Collection[str]) -> str:
    """Return an arm's mean over replicates, and its effect over another arm."""
    if arm not in wide:
        if arm.startswith(NOT_RUN):
            return "not run"
        return f"{NOT_RUN}{'planned' if arm in planned else 'not an arm of this study'}"
    values = wide[arm]
    if values.empty:
        return "no replicate has all arms of this table"
    mean = f"{values.mean():.0f} s" if days else f"{values.mean():.1f}"
    if len(values) > 1:
        mean += f" ± {values.std():.0f}" if days else f" ± {values.std():.1f}"
    if before not in wide or before == arm:
        return mean
    return _with_effect(mean, values.mean(), wide[before].mean(), days)


def _with_effect(text: str, value: float, before: float | None, ratio: bool) -> str:
    if before is None or pd.isna(value) or pd.isna(before):
        return text
    return f"{text}\n({f'{value / before:.1f} times' if ratio else signed(value - before)})"


def _wide(frame: pd.DataFrame, replicate: str, value: str, scale: float) -> pd.DataFrame:
    """Return ``(replicates, arms)``."""
    return scale * frame.pivot(index=replicate, columns="arm", values=value).astype(float)


def _cells(name: str) -> Table | None:
    """Return a table of the paper as it is, if it has more columns than the table beside ours shows."""
    table = paper_table(name)
    numbers = [column for column in table if pd.api.types.is_numeric_dtype(table[column])]
    if len(numbers) <= 6:
        return None
    rows = [[_word(value) for value in row] for row in table.itertuples(index=False)]
    return [_label(str(column)) for column in table], rows


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _label(name: str) -> str:
    return name.replace("_", " ")
