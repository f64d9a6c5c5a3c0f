"""The page of departures and choices, from the docstrings of the modules that make them.

A module that departs from the paper, or decides what the paper leaves open, says so in a paragraph of its
docstring that begins with one of ``HEADS``. The page holds these paragraphs as they are, in the order of the
API, so that it cannot say anything else than the code's own description.
"""

import ast
import re
import textwrap
from itertools import takewhile
from pathlib import Path

HEADS = ("Departures from the paper", "Choices where the paper is silent")


def departures_page(api: Path, root: Path) -> str:
    """The paragraphs of every module that has some, as MyST.

    Args:
        api: the page of the API, whose headings and order this page has.
        root: the folder that holds the package ``masters``.

    Raises:
        ValueError: the API names a module that is not there.
    """
    parts: list[str] = []
    heading: list[str] = []
    for title, module in re.findall(r"^## (.+)$|^\.\. automodule:: (\S+)$", api.read_text(), re.MULTILINE):
        if title:
            heading = [f"## {title}"]
            continue
        docstring = _docstring(module, root)
        if found := paragraphs(docstring):
            # In reST, which Sphinx reads as it reads the docstrings: their roles become links here too.
            idea = docstring.split("\n\n", 1)[0]
            body = "\n\n".join([f".. py:currentmodule:: {module}", f":mod:`{module}`: {idea}", *found])
            parts += [*heading, f"### {module}", f"```{{eval-rst}}\n{body}\n```"]
            heading = []
    return "\n\n".join(parts) + "\n"


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a docstring that begin with one of ``HEADS``, each as reST that stands on its own.

    What is indented below the first lines belongs to the paragraph, blank lines included.
    """
    found = []
    for block in re.split(r"\n\n(?=\S)", docstring):
        head = next((head for head in HEADS if block.startswith(head)), None)
        if head is None:
            continue
        lines = block.splitlines()
        first = list(takewhile(lambda line: not line.startswith(" "), lines))
        # A list right below a line is a definition in reST: a blank line makes it a list below a paragraph.
        below = textwrap.dedent("\n".join(lines[len(first) :])).strip()
        text = "\n".join(first).replace(head, f"**{head}**", 1)
        found.append(f"{text}\n\n{below}".strip())
    return found


def _docstring(module: str, root: Path) -> str:
    """Read, not imported: some modules need packages that are not installed everywhere."""
    path = root.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        raise ValueError(f"the API page names {module}, but there is no {path}: take it out")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
