"""Jobs side by side, and what becomes of them when the process that began them is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from masters.runtime import progress, workers
from masters.settings import load_profile


def job(lab: Any, path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


def test_a_killed_parent_takes_its_jobs_along(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, __file__, str(told)])
    try:
        deadline = time.monotonic() + 120
        while not (told.is_file() and told.read_text()):
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        child = psutil.Process(int(told.read_text()))
        assert child.is_running()
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    child.wait(30)


def look(lab: Any, folder: Path, told: Path) -> None:
    told.write_text(" ".join(progress.lines(folder)))


def test_jobs_are_said_before_the_first_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTERS_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setattr(progress, "_last", float("-inf"))
    job = look, (tmp_path / "progress", tmp_path / "told")
    workers.run(str, load_profile("smoke"), [job], 1, "jobs")
    assert (tmp_path / "told").read_text() == "jobs 0/1"
    assert progress.lines(tmp_path / "progress") == []


if __name__ == "__main__":
    workers.run(str, load_profile("smoke"), [(job, (Path(sys.argv[1]),))], 1, "jobs")
