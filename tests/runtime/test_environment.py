"""Versions agree between requirements, constraints, pyproject, conda and the installed packages."""

import ast
import importlib.metadata
import re
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import masters
from masters.runtime.files import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.11", "3.12", "3.13")


def _read(name: str) -> list[Requirement]:
    lines = [line.split(" #")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _pin(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not an exact pin"
    return Version(specifier.version)


DIRECT = {canonicalize_name(r.name): r for r in _read("requirements.in")}
LOCKED = _read("constraints.txt")


def _declared() -> dict[str, Requirement]:
    extras = PYPROJECT["project"]["optional-dependencies"]
    # deepspeed compiles code, liger needs Triton for a single test, pretrained has 100 MB of weights, and the
    # processors in the tests need no vlm.
    unpinned = {"deepspeed", "liger", "pretrained", "vlm"}
    groups = [PYPROJECT["project"]["dependencies"], *(extras[name] for name in extras.keys() - unpinned)]
    return {canonicalize_name(r.name): r for group in groups for r in map(Requirement, group)}


def test_direct_dependencies_are_exact_pins() -> None:
    assert len(DIRECT) > 20
    for requirement in DIRECT.values():
        _pin(requirement)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_lock_contains_the_direct_pins_on_every_python(python: str, system: str) -> None:
    where = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": system}
    locked = {
        canonicalize_name(r.name): _pin(r) for r in LOCKED if r.marker is None or r.marker.evaluate(where)
    }
    for name, requirement in DIRECT.items():
        assert locked.get(name) == _pin(requirement), f"{name}: constraints.txt is behind, run `make lock`"


def test_the_lock_has_one_version_per_package_and_no_local_paths() -> None:
    here = [canonicalize_name(r.name) for r in LOCKED if r.marker is None or r.marker.evaluate()]
    assert len(here) == len(set(here))
    text = (ROOT / "constraints.txt").read_text()
    assert "--hash" not in text and "://" not in text and "--index" not in text
    assert not re.search(r"/(opt|root|home|tmp|work|usr)\b", text)


def test_installed_versions_are_the_locked_ones() -> None:
    differing = []
    for requirement in LOCKED:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            installed = Version(importlib.metadata.version(requirement.name))
        except importlib.metadata.PackageNotFoundError:
            continue  # CPU wheels do not need the GPU libraries in the lock.
        # A local label such as 2.13.0+cpu is the same release.
        if Version(installed.public) != _pin(requirement):
            differing.append(f"{requirement.name} {installed}, locked {_pin(requirement)}")
    assert not differing
    for requirement in DIRECT.values():
        importlib.metadata.version(requirement.name)


def test_pyproject_declares_the_direct_dependencies_and_its_bounds_admit_the_pins() -> None:
    declared = _declared()
    assert set(declared) == set(DIRECT)
    for name, requirement in declared.items():
        assert _pin(DIRECT[name]) in requirement.specifier, f"{requirement} excludes the pin {DIRECT[name]}"


def test_the_environment_of_the_extras_is_pinned_within_their_bounds() -> None:
    pinned = {canonicalize_name(r.name): _pin(r) for r in _read("tests/extras_environment/requirements.txt")}
    for extra in ("deepspeed", "liger"):
        (bound,) = map(Requirement, PYPROJECT["project"]["optional-dependencies"][extra])
        assert pinned.pop(canonicalize_name(bound.name)) in bound.specifier
    assert not set(pinned) & {canonicalize_name(r.name) for r in LOCKED}, (
        "the pinned environment is used as it is"
    )


def test_the_package_imports_only_declared_dependencies() -> None:
    distributions = importlib.metadata.packages_distributions()
    runtime = {
        canonicalize_name(Requirement(text).name)
        for text in [
            *PYPROJECT["project"]["dependencies"],
            *PYPROJECT["project"]["optional-dependencies"]["notebooks"],
            *PYPROJECT["project"]["optional-dependencies"]["book"],
            *PYPROJECT["project"]["optional-dependencies"]["embedding"],
            *PYPROJECT["project"]["optional-dependencies"]["ray"],
            *PYPROJECT["project"]["optional-dependencies"]["bench"],
        ]
    }
    missing = []
    for path in (path for part in ("masters", "masters_book") for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.append(node.module)
            for top in (
                {name.split(".")[0] for name in names} - {"masters", "masters_book"} - sys.stdlib_module_names
            ):
                owners = {canonicalize_name(owner) for owner in distributions.get(top, [])}
                if not owners & runtime and top != "vllm":  # vllm needs its own environment
                    missing.append(f"{path.relative_to(ROOT)} imports {top}")
    assert not missing


def test_conda_environment_reads_the_same_files() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    parts = environment["dependencies"]
    (pip,) = [part["pip"] for part in parts if isinstance(part, dict)]
    assert pip == ["-r requirements.in", "-c constraints.txt", "-e ."]
    (python,) = [part for part in parts if isinstance(part, str) and part.startswith("python=")]
    assert Version(python.split("=")[1]) in SpecifierSet(PYPROJECT["project"]["requires-python"])


def test_supported_pythons_are_the_same_everywhere() -> None:
    supported = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert [p for p in ("3.10", "3.11", "3.12", "3.13", "3.14") if Version(p) in supported] == list(PYTHONS)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert tuple(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == PYTHONS
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "Makefile").read_text()


def test_citation_and_license() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == masters.__version__
    assert citation["license"] == PYPROJECT["project"]["license"] == "Apache-2.0"
    assert "2512.22238" in str(citation["preferred-citation"]["identifiers"])
    license_text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in license_text and "END OF TERMS AND CONDITIONS" in license_text
