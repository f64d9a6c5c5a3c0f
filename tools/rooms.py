"""Draw the rooms of the package and their imports into CONTRIBUTING.md, and name what breaks the plan.

    python tools/rooms.py           # rewrite the picture
    python tools/rooms.py --check   # exit 1 if it is old, an arrow is not allowed, or files form a circle
    python tools/rooms.py --lines   # files and lines of each room

Imports below ``if TYPE_CHECKING`` and inside functions count like all others.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "masters"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- rooms -->", "<!-- end of rooms -->"
# From each room to those that it may import, itself aside.
BASE = {"masking", "objective", "runtime"}
GROUND = {"data", "judges", "settings", *BASE}
ALLOWED: dict[str, set[str]] = {
    "masking": set(),
    "objective": set(),
    "runtime": set(),
    "claims": {"runtime"},
    "settings": BASE,
    "data": BASE,
    "judges": BASE,
    "models": GROUND,
    "responses": {"models", *GROUND},
    "training": {"models", *GROUND},
    "experiments": {"training", "responses", "models", *GROUND},
    "analysis": {"experiments", "training", "responses", "models", *GROUND},
    "study": {"analysis", "experiments", "training", "responses", "models", "claims", *GROUND},
}
ALLOWED["report"] = {"study", *ALLOWED["study"]}
ALLOWED["cli"] = {"report", *ALLOWED["report"]}


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name; the package's own ``__init__`` is left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != "masters":
            found[name] = path
    return found


def arrows() -> dict[str, set[str]]:
    """Return the modules that each module imports."""
    paths = modules()
    found: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [one if one in paths else node.module for one in inside]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            found[name] |= {target for target in targets if target in paths and target != name}
    return found


def room(module: str) -> str:
    """Return the room of a module."""
    return module.split(".")[1]


def problems() -> list[str]:
    """Return every arrow that is not allowed and every circle of files, a line each."""
    found = []
    imports = arrows()
    for module, targets in imports.items():
        for target in sorted(targets):
            if room(target) != room(module) and room(target) not in ALLOWED[room(module)]:
                found.append(f"{module} imports {target}: {room(module)} may not import {room(target)}")
    # What imports nothing that is left is taken away; what stays is part of a circle or imports one.
    left = {module: set(targets) for module, targets in imports.items()}
    while free := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in free:
            del left[module]
    if left:
        found.append(f"these import each other in a circle: {', '.join(sorted(left))}")
    return found


def picture() -> str:
    """Return the rooms and their arrows as a Mermaid graph; arrows that a longer way implies are left out."""
    direct: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for module, targets in arrows().items():
        direct[room(module)] |= {room(target) for target in targets} - {room(module)}

    def reach(name: str) -> set[str]:
        return direct[name] | {far for near in direct[name] for far in reach(near)}

    rows = ["```mermaid", "graph TD"]
    for name in reversed(ALLOWED):
        implied = {far for near in direct[name] for far in reach(near)}
        rows += [f"    {name} --> {target}" for target in sorted(direct[name] - implied)]
    return "\n".join([*rows, "```"])


def sizes() -> str:
    """Return files and lines of each room, and of the package."""
    lines, files = Counter[str](), Counter[str]()
    for module, path in modules().items():
        for name in (room(module), "all"):
            lines[name] += len(path.read_text(encoding="utf-8").splitlines())
            files[name] += 1
    return "\n".join(f"{name:12} {files[name]:4} files {lines[name]:7,} lines" for name in [*ALLOWED, "all"])


def main() -> int:
    """Rewrite the picture, or check it."""
    if "--lines" in sys.argv:
        print(sizes())
        return 0
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    whole = f"{before}{BEGIN}\n{picture()}\n{END}{rest.split(END)[1]}"
    if "--check" not in sys.argv:
        PAGE.write_text(whole, encoding="utf-8")
        return 0
    found = problems()
    if whole != text:
        found.append(f"the picture in {PAGE.name} is old: python tools/rooms.py")
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
