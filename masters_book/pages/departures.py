"""The page of departures from the paper, from the modules' docstrings.

A module that departs from the paper, or decides what the paper leaves open, has a paragraph in its docstring
that begins with one of ``HEADS``. The page shows these paragraphs in the order of the API.
"""

import ast
import re
import textwrap
from itertools import takewhile
from pathlib import Path

HEADS = ("Departures from the paper", "Choices where the paper is silent")


def departures_page(api: Path, root: Path) -> str:
    """Return these paragraphs of all modules, as MyST.

    Args:
        api: page of the API, which gives headings and order.
        root: folder with the package ``masters``.

    Raises:
        ValueError: the API names a module that does not exist.
    """
    parts: list[str] = []
    heading: list[str] = []
    for title, module in re.findall(r"^## (.+)$|^\.\. automodule:: (\S+)$", api.read_text(), re.MULTILINE):
        if title:
            heading = [f"## {title}"]
            continue
        docstring = _docstring(module, root)
        if found := paragraphs(docstring):
            # As reST, so that roles become links as in the API.
            idea = docstring.split("\n\n", 1)[0]
            body = "\n\n".join([f".. py:currentmodule:: {module}", f":mod:`{module}`: {idea}", *found])
            parts += [*heading, f"### {module}", f"```{{eval-rst}}\n{body}\n```"]
            heading = []
    return "\n\n".join(parts) + "\n"


def paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs of a docstring that begin with one of ``HEADS``, each as complete reST.

    Indented lines below belong to the paragraph, blank lines included.
    """
    found = []
    for block in re.split(r"\n\n(?=\S)", docstring):
        head = next((head for head in HEADS if block.startswith(head)), None)
        if head is None:
            continue
        lines = block.splitlines()
        first = list(takewhile(lambda line: not line.startswith(" "), lines))
        # In reST a list below a paragraph needs a blank line.
        below = textwrap.dedent("\n".join(lines[len(first) :])).strip()
        text = "\n".join(first).replace(head, f"**{head}**", 1)
        found.append(f"{text}\n\n{below}".strip())
    return found


def _docstring(module: str, root: Path) -> str:
    """Return a module's docstring without importing it: some need packages that may be missing."""
    path = root.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        raise ValueError(f"the API page names {module}, but there is no {path}: take it out")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
