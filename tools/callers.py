"""List the public functions, classes and methods of the package that only tests use, if any.

    python tools/callers.py   # exit 1 if there are some

Callers are the package itself, benchmarks, examples, notebooks, pages and the names that ``masters`` exports.
A name counts as used wherever it occurs, so the list may lack a name.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import masters

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("masters", "masters_book")
# What transformers, papermill and Sphinx call.
HOOKS = {
    "floating_point_ops",
    "get_seq_length",
    "kernel_spec",
    "on_log",
    "on_save",
    "on_step_end",
    "on_train_begin",
    "setup",
}


def defined(tree: ast.Module, path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and place of each public function, class and method of a module, without typer commands."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        for one in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
            if not isinstance(one, kinds) or one.name.startswith("_"):
                continue
            if not any("command" in ast.unparse(decorator) for decorator in one.decorator_list):
                yield one.name, f"{path.relative_to(ROOT)}:{one.lineno}"


def used(tree: ast.Module) -> Iterator[str]:
    """Yield every name that a module mentions other than by defining it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg


def unused() -> list[str]:
    """Return one line per public name of the package that only tests use."""
    names: set[str] = set()
    places: list[tuple[str, str]] = []
    for folder in (*PACKAGES, "benchmarks", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names.update(used(tree))
            if folder in PACKAGES:
                places += defined(tree, path)
    listed = ["git", "ls-files", "*.md", "notebooks/*.ipynb"]
    pages = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        code = re.findall(r"`[^`]+`", text) if page.endswith(".md") else [text]
        names.update(re.findall(r"\w+", " ".join(code)))
    names.update(masters.__all__)
    return [f"{place}: {name}" for name, place in places if name not in names | HOOKS]


if __name__ == "__main__":
    found = unused()
    print("\n".join(found))
    sys.exit(1 if found else 0)
