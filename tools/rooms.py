"""Check the imports between the rooms (subpackages) of both packages, and draw them into CONTRIBUTING.md.

    python tools/rooms.py           # rewrite the diagram
    python tools/rooms.py --check   # exit 1 if the diagram is outdated or an import is forbidden or circular
    python tools/rooms.py --lines   # files and lines per room

Imports under ``if TYPE_CHECKING`` and inside functions count too.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("masters", "masters_book")  # the method, and what studies it and writes the book
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- rooms -->", "<!-- end of rooms -->"
# The other rooms that each room may import.
BASE = {"masking", "objective", "runtime"}
GROUND = {"data", "judges", "settings", *BASE}
ALLOWED: dict[str, set[str]] = {
    "masking": set(),
    "objective": set(),
    "runtime": set(),
    "results": {"runtime"},
    "claims": {"results", "runtime"},
    "settings": BASE,
    "data": BASE,
    "judges": {"data", *BASE},
    "models": GROUND,
    "responses": {"models", *GROUND},
    "training": {"models", *GROUND},
    "own_data": GROUND - {"judges"},
    "experiments": {"own_data", "training", "responses", "models", *GROUND},
    "analysis": {"results", "experiments", "own_data", "training", "responses", "models", *GROUND},
}
ALLOWED["study"] = {"analysis", "claims", *ALLOWED["analysis"]}
ALLOWED["imitation"] = {"study", *ALLOWED["study"]}
ALLOWED["figures"] = {"imitation", *ALLOWED["imitation"]}
ALLOWED["distillation"] = {"experiments", *ALLOWED["experiments"]}
ALLOWED["pages"] = {"figures", "distillation", *ALLOWED["figures"]}
ALLOWED["report"] = {"pages", *ALLOWED["pages"]}
ALLOWED["cli"] = {"distillation", *ALLOWED["distillation"]}
ALLOWED["commands"] = {"cli", "report", *ALLOWED["report"]}


def modules() -> dict[str, Path]:
    """Return the file of every module by dotted name, without the packages' own ``__init__``."""
    paths = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name not in PACKAGES:
            paths[name] = path
    return paths


def imports() -> dict[str, set[str]]:
    """Return the modules of the package that each module imports."""
    paths = modules()
    imported: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [full if full in paths else node.module for full in names]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            imported[name] |= {target for target in targets if target in paths and target != name}
    return imported


def room(module: str) -> str:
    """Return the room of a module."""
    return module.split(".")[1]


def problems() -> list[str]:
    """Return one line per forbidden import, and one for circular imports."""
    lines = []
    imported = imports()
    for module, targets in imported.items():
        for target in sorted(targets):
            if room(target) != room(module) and room(target) not in ALLOWED[room(module)]:
                lines.append(f"{module} imports {target}: {room(module)} may not import {room(target)}")
    # Remove modules that import none of those left; the rest is circular or imports a circle.
    left = {module: set(targets) for module, targets in imported.items()}
    while free := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in free:
            del left[module]
    if left:
        lines.append(f"circular imports among: {', '.join(sorted(left))}")
    return lines


def diagram() -> str:
    """Return the rooms' imports as a Mermaid graph, without arrows that a longer path implies."""
    direct: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for module, targets in imports().items():
        direct[room(module)] |= {room(target) for target in targets} - {room(module)}

    def reach(name: str) -> set[str]:
        return direct[name] | {far for near in direct[name] for far in reach(near)}

    package_of = {room(module): module.split(".")[0] for module in modules()}
    lines = ["```mermaid", "graph TD"]
    for package in reversed(PACKAGES):
        rooms = [name for name in reversed(ALLOWED) if package_of[name] == package]
        lines += [f"    subgraph {package}", f"        {'; '.join(rooms)}", "    end"]
    for name in reversed(ALLOWED):
        implied = {far for near in direct[name] for far in reach(near)}
        lines += [f"    {name} --> {target}" for target in sorted(direct[name] - implied)]
    return "\n".join([*lines, "```"])


def sizes() -> str:
    """Return the files and lines of each room and package, one line each."""
    lines, files = Counter[str](), Counter[str]()
    for module, path in modules().items():
        for name in (room(module), module.split(".")[0]):
            lines[name] += len(path.read_text(encoding="utf-8").splitlines())
            files[name] += 1
    return "\n".join(
        f"{name:12} {files[name]:4} files {lines[name]:7,} lines" for name in [*ALLOWED, *PACKAGES]
    )


def main() -> int:
    """Rewrite the diagram, check it, or print sizes."""
    if "--lines" in sys.argv:
        print(sizes())
        return 0
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    current = f"{before}{BEGIN}\n{diagram()}\n{END}{rest.split(END)[1]}"
    if "--check" not in sys.argv:
        PAGE.write_text(current, encoding="utf-8")
        return 0
    found = problems()
    if current != text:
        found.append(f"the diagram in {PAGE.name} is outdated: run python tools/rooms.py")
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
