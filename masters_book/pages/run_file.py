"""Every parameter of a run file in one table, from :class:`masters.distillation.run_file.RunFile`."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from masters.distillation.run_file import RunFile
from masters_book.pages.rendering import fill


def run_file_table() -> str:
    """Return the table: name, what it is, default."""
    rows = [row for row in _rows(RunFile) if row[0] != "file"]
    header = ["Parameter", "What it is", "Default"]
    return fill("table.md", header=header, rows=rows, caption="Parameters of a run file")


def _rows(model: type[BaseModel], head: str = "") -> Iterator[list[str]]:
    """Yield the fields of a model, those of its sections with dots."""
    for name, field in model.model_fields.items():
        sections = list(_sections(field.annotation))
        if field.description or not sections:
            default = "to be given" if field.is_required() else _shown(field.default)
            yield [f"{head}{name}", field.description or "", default]
        for key, section in sections:
            yield from _rows(section, f"{head}{name}.{key}")


def _sections(annotation: Any, key: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the models that a type names, each with its key in a dictionary, such as ``llm.``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield key, annotation
        return
    parts = get_args(annotation)
    if get_origin(annotation) is dict:
        key, parts = "".join(f"{name}." for name in get_args(parts[0])), parts[1:]
    for part in parts:
        yield from _sections(part, key)


def _shown(default: Any) -> str:
    if isinstance(default, BaseModel):
        return ", ".join(f"{name}: {_shown(value)}" for name, value in default)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list):
        return ", ".join(map(str, default)) or "none"
    if isinstance(default, float):
        return f"{default:g}"
    return "none" if default in (None, {}) else str(default)
