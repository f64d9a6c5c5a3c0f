"""The plan of the package: arrows between rooms go one way, no files import each other in a circle."""

import os
import subprocess
import sys
from collections import Counter

import masters
from masters.runtime.files import ROOT


def test_arrows_are_those_of_the_plan_and_the_picture_shows_them() -> None:
    done = subprocess.run(
        [sys.executable, "tools/rooms.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_has_a_caller_outside_the_tests() -> None:
    done = subprocess.run(
        [sys.executable, "tools/callers.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_two_test_modules_share_a_name() -> None:
    """Spawned processes import a module by its base name, and would wait for the other one's functions."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert not [name for name, count in names.items() if count > 1]


def test_importing_the_package_loads_nothing_until_it_is_used() -> None:
    program = (
        "import sys, masters; heavy = {'torch', 'transformers', 'pandas'} & set(sys.modules); "
        "assert not heavy, heavy; masters.MaskSchedule; assert 'torch' not in sys.modules; "
        "masters.jsd; assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    for name in masters.__all__:
        assert getattr(masters, name).__name__ == name
    assert set(masters.__all__) <= set(dir(masters))
