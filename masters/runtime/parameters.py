"""Parameter files: YAML, read and validated strictly, with one line for each problem."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from masters.runtime.errors import one_line
from masters.runtime.files import ROOT

MAX_BYTES = 1_000_000  # of a parameter file
MERGE = "tag:yaml.org,2002:merge"


class Strict(BaseModel):
    """A frozen model that refuses unknown parameters."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # may be a password
    )

    @classmethod
    def checked(cls, values: dict[str, Any], path: Path, part: str = "") -> Self:
        """Validate parameters.

        Args:
            path: file of the parameters, for the message.
            part: section of that file.

        Raises:
            ValueError: a parameter is unknown, missing or out of range; one line names it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = []
            for item in error.errors()[:10]:
                place = ".".join(filter(None, (part, *map(str, item["loc"])))) or "file"
                known = _known(cls, item["loc"][:-1]) if item["type"] == "extra_forbidden" else ""
                problems.append(f"{place[:200]}: {item['msg'].removeprefix('Value error, ')[:500]}{known}")
            raise ValueError(f"{_shown(path)}: {'; '.join(problems)}") from None


def _known(model: Any, sections: Sequence[int | str]) -> str:
    """Return the parameters of a section, for messages; empty if its type is not one model."""
    for name in sections:
        field = getattr(model, "model_fields", {}).get(name)
        model = field.annotation if field else None
    known = getattr(model, "model_fields", {})
    return f" (known: {', '.join(known)})" if known else ""


class _NoRepeats(yaml.SafeLoader):
    """Refuse a name that stands twice in a section, of which the last would count."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{repeated[0]!r} stands twice in one section")
        return super().construct_mapping(node, deep)


def read_parameters(path: Path) -> dict[str, Any]:
    """Read the parameters in a YAML file.

    Raises:
        ValueError: the file is missing, too large, not YAML, or does not hold names and values.
    """
    shown = _shown(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot read the parameter file {shown}: {error.strerror or error}") from None
    if len(text) > MAX_BYTES:
        raise ValueError(f"{shown} has more than {MAX_BYTES:,} bytes, the largest size of a parameter file")
    try:
        content = yaml.load(text.decode(), _NoRepeats)
    except Exception as error:  # a wrong tag such as `!!bool maybe`, or a deep nest, fails in many ways
        raise ValueError(f"{shown} is not valid YAML: {one_line(error, 500)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{shown} must hold 'name: value' lines but holds {type(content).__name__}")
    if odd := [name for name in content if not isinstance(name, str)]:
        raise ValueError(f"{shown} must hold 'name: value' lines, and {odd[0]!r} is not a name")
    return content


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
