"""The example in README runs, and its figure is drawn from the tracked study."""

import re
import runpy
from pathlib import Path

import pytest

from masters.runtime.files import ROOT

README = (ROOT / "README.md").read_text()
EXAMPLE = ROOT / "examples" / "one_step_per_stage.py"


def test_the_example_is_the_file_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"```python\n{EXAMPLE.read_text()}```" in README
    runpy.run_path(str(EXAMPLE))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["r 0.2", "r 0.1", "r 0.0"]
    divergences = [float(line.split()[3].rstrip(",")) for line in lines]
    assert divergences[-1] < divergences[0], "two steps of distillation bring the student nearer"


def test_the_picture_is_of_the_tracked_study(tmp_path: Path) -> None:
    draw = runpy.run_path(str(ROOT / "tools" / "picture.py"))["draw"]
    draw(tmp_path / "claims.svg")
    # Glyphs are numbered by the copy of the font, the system's or matplotlib's.
    new, tracked = (
        re.sub(r"DejaVuSans(-Bold)?-[0-9a-f]+", "glyph", path.read_text(encoding="utf-8"))
        for path in (tmp_path / "claims.svg", ROOT / "docs" / "claims.svg")
    )
    assert new == tracked


def test_a_newcomer_can_read_it_to_the_end() -> None:
    assert len(README.splitlines()) <= 120
    for path in ("examples/one_step_per_stage.py", "CONTRIBUTING.md", "docs/claims.svg", "CITATION.cff"):
        assert path in README and (ROOT / path).is_file()
