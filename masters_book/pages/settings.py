"""The settings of the paper, of a profile and of the study side by side, for the page of departures.

A row is a field of :class:`masters.settings.Profile` that a parameter file sets or for which the paper has a
value. The paper's values are what the fields' descriptions say after ``paper:``; fields of the objective
without such words have the paper's value as default (:mod:`masters.objective.options`). Rows that differ from
the paper come first, in the order of :data:`CONSEQUENCE`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from masters.experiments.arms import arm
from masters.objective.options import LossOptions
from masters.runtime.parameters import read_parameters
from masters.settings import PARAMS, ModelSpec, Profile, load_profile
from masters_book.pages.parameters import NOTEBOOKS, notebook_parameters
from masters_book.pages.rendering import fill
from masters_book.study.study import Study

# From what decides most about a result to what decides least; names begin with one of these.
CONSEQUENCE = (
    *("ladder.", "tasks", "registers"),
    *("distillation.policy_weight", "distillation.learning_rate", "distillation.steps"),
    *("distillation.questions", "distillation.batch", "distillation.lr_schedule", "distillation.beta"),
    *("distillation.r_max", "distillation.r_step", "judge", "reward", "distillation.", "sampling.", "seeds"),
    *("train_questions", "wrong_labels", "test_questions", "validation_questions", "trials.", ""),
)
ABOUT = (
    "name",
    "description",
    "shows",
    "cannot_show",
    "minutes",
    "processes",
    "base",
    "replicate",
)  # not of the method
NO_VALUE = "none"
# The paper's models by rung.
LADDER = {
    "student": "2B to 8B, such as Qwen3-VL-8B",
    "mid": "14B, such as InternVL3.5-14B",
    "large": "32B to 78B, such as Qwen3-VL-32B",
}


def settings_table(profile: str, study: Study) -> str:
    """Return the tables of settings.

    Args:
        profile: name of the profile to show.
    """
    base = load_profile(profile)
    columns = {profile: _values(base), "study": _of_study(study)}
    said = {name: words for name, _, words in _fields(base)}
    given = _paths(read_parameters(PARAMS / profile / "profile.yaml"))
    rows = []
    for name in dict.fromkeys(name for values in columns.values() for name in values):
        of_paper, words = _papers(name, said.get(name, ""))
        if (
            name not in given
            and not name.startswith("ladder.")
            and "paper: " not in said.get(name, "paper: ")
        ):
            continue
        cells = [values.get(name, "") for values in columns.values()]
        differs = "yes" if any(not _same(of_paper, cell) for cell in cells if cell) else "no"
        differs = {NO_VALUE: "no counterpart", "not given": "the paper does not say"}.get(of_paper, differs)
        place = next(at for at, head in enumerate(CONSEQUENCE) if name.startswith(head))
        row = {"name": name, "words": words, "cells": [of_paper, *cells], "differs": differs}
        rows.append(((differs == "no", place), row))
    return fill(
        "settings.md",
        header=["Setting", "Paper", *columns, "Differs from the paper?"],
        rows=[row for _, row in sorted(rows, key=lambda each: each[0])],
        profile=profile,
        notebooks=_of_notebooks(profile),
    )


def _fields(model: BaseModel, head: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield name, value and description of every setting, those of nested models with dots."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _fields(value, f"{head}{name}.")
        elif name == "ladder":
            for rung, spec in value.items():
                yield f"{name}.{rung}", spec, f"paper: {LADDER[rung]}" if rung in LADDER else ""
        elif head or name not in ABOUT:
            yield f"{head}{name}", value, field.description or ""


def _values(profile: Profile) -> dict[str, str]:
    return {name: _word(value) for name, value, _ in _fields(profile)}


def _of_study(study: Study) -> dict[str, str]:
    """Return a study's settings; those that tuning chose for Masters say so."""
    plan = study.plan
    values = _values(study.profile)
    main = "" if plan.few_seeds == plan.seeds else f" for the main arms, {plan.few_seeds} for others"
    values["seeds"] = f"{plan.seeds}{main}"
    values["trials.plain"] = _word(plan.trials.plain)
    values["trials.rewarded"] = "\n".join(map(_word, plan.trials.rewarded))
    spec = arm(study.settings().get("masters", "masters"), study.profile)
    for name in type(study.profile.distillation).model_fields:
        before, value = getattr(study.profile.distillation, name), getattr(spec, name, None)
        if value is not None and value != before:
            values[f"distillation.{name}"] = f"{_word(value)}\n(Masters, tuned)"
    return values


def _papers(name: str, description: str) -> tuple[str, str]:
    """Return the paper's value, and the description without it."""
    before, found, value = description.partition("paper: ")
    if name.startswith("trials."):
        return NO_VALUE, "settings tried for each arm" + (": rate, weight, beta" if "rew" in name else "")
    if found:
        value, _, after = value.partition("; ")
        return value, "" if name.startswith("ladder.") else "; ".join(
            filter(None, (before.strip("; "), after))
        )
    field = LossOptions.model_fields.get(name.removeprefix("distillation."))
    return (_word(field.default) if field else NO_VALUE), description


def _same(of_paper: str, ours: str) -> bool:
    """Return whether a value is the paper's, by its first word or number."""
    first, second = (text.replace(",", " ").split(maxsplit=1)[0] for text in (f"{of_paper} .", f"{ours} ."))
    try:
        return float(first) == float(second) and "million" not in of_paper
    except ValueError:
        return first == second


def _paths(values: Mapping[str, Any], head: str = "") -> set[str]:
    """Return the names of the settings that a parameter file sets."""
    found = set()
    for name, value in values.items():
        found |= _paths(value, f"{head}{name}.") if isinstance(value, dict) else {f"{head}{name}"}
    return found


def _of_notebooks(profile: str) -> tuple[list[str], list[list[str]]]:
    rows = []
    for notebook in NOTEBOOKS:
        parameters = notebook_parameters(profile, notebook)
        for name, value, description in _fields(parameters):
            if name != "profile":
                rows.append([f"{notebook.replace('_', ' ')}: {name}", description, _word(value)])
    return ["Setting", "What it is", profile], rows


def _word(value: Any) -> str:
    if isinstance(value, ModelSpec):
        given = value.model_dump(exclude_unset=True)
        return ", ".join(f"{name.replace('_', ' ')} {_word(each)}" for name, each in given.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}" if abs(value) < 1e5 else f"{value:,}"
    if isinstance(value, tuple | list):
        return ", ".join(f"({_word(each)})" if isinstance(each, tuple) else _word(each) for each in value)
    return "none" if value in (None, {}) else str(value)
