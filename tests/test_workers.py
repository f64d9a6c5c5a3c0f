"""Jobs side by side, and what becomes of them when the process that began them is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from masters import workers
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


if __name__ == "__main__":
    workers.run(str, load_profile("smoke"), [(job, (Path(sys.argv[1]),))], 1, "jobs")
