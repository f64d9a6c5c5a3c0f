import json
import os
import time
from pathlib import Path

import pytest

from masters.runtime import progress


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "progress"
    monkeypatch.setenv("MASTERS_PROGRESS", str(path))
    monkeypatch.setattr(progress, "_last", float("-inf"))
    return path


def test_a_report_becomes_a_line_until_the_work_is_done(folder: Path) -> None:
    progress.report("training large", 1200, 5000)
    assert progress.lines(folder) == ["training large 1200/5000"]
    assert [path.name for path in folder.iterdir()] == [f"{os.getpid()}.json"]
    progress.report("training large", 5000, 5000)
    assert progress.lines(folder) == []


def test_reports_are_limited_to_one_per_interval(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    progress.report("work", 1, 10)
    now += progress.INTERVAL / 2
    progress.report("work", 2, 10)
    assert progress.lines(folder) == ["work 1/10"]
    now += progress.INTERVAL
    progress.report("work", 3, 10)
    assert progress.lines(folder) == ["work 3/10"]


def test_without_the_variable_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTERS_PROGRESS")
    progress.report("work", 1, 10)
    progress.report("work", 10, 10)
    assert not folder.exists() and progress.lines(folder) == []


def test_the_end_of_unreported_work_is_no_error(folder: Path) -> None:
    progress.report("work", 10, 10)
    assert progress.lines(folder) == []


def test_lines_of_several_processes_skip_partial_files(folder: Path) -> None:
    folder.mkdir()
    for number in (1, 2):
        (folder / f"{number}.json").write_text(json.dumps({"what": "run", "done": number, "total": 9}))
    for number, damaged in enumerate(('{"what": "ru', "[]", "{}", "7", "", "\udcff"), start=5):
        (folder / f"{number}.json").write_text(damaged, errors="surrogateescape")
    (folder / "4.new").write_text(json.dumps({"what": "unfinished", "done": 1, "total": 2}))
    assert progress.lines(folder) == ["run 1/9", "run 2/9"]


def test_progress_is_shown_as_lines_during_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_last", float("-inf"))
    monkeypatch.setattr(progress, "SHOWN_EVERY", 0.05)
    with pytest.raises(KeyError, match="from within"), progress.shown():
        folder = Path(os.environ["MASTERS_PROGRESS"])
        progress.report("training a run", 3, 10)
        time.sleep(0.3)
        raise KeyError("from within")
    shown = capsys.readouterr().err.splitlines()
    assert shown and set(shown) == {"training a run 3/10"}
    assert "MASTERS_PROGRESS" not in os.environ and not folder.exists()


def test_a_report_that_cannot_be_written_does_not_end_the_work(folder: Path) -> None:
    folder.write_text("not a folder")
    progress.report("work", 1, 10)
    progress.report("work", 10, 10)
