"""Parallel jobs, and their end when the parent process is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from masters.runtime import progress, workers


def job(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


def test_jobs_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    report = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, __file__, str(report)])
    try:
        deadline = time.monotonic() + 120
        while not (report.is_file() and report.read_text()):
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        family = psutil.Process(parent.pid).children(recursive=True)
        assert int(report.read_text()) in {process.pid for process in family}
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert not psutil.wait_procs(family, 30)[1], "the worker, and the process that it was forked from"


def test_each_worker_has_its_part_of_the_gpus() -> None:
    four = ["0", "1", "2", "3"]
    assert [workers.share(four, 4, number) for number in (1, 2, 3, 4)] == [["1"], ["2"], ["3"], ["0"]]
    assert [workers.share(four, 2, number) for number in (1, 2)] == [["1", "3"], ["0", "2"]]
    assert [workers.share(["7"], 3, number) for number in (1, 2, 3)] == [["7"]] * 3


ASKS_NO_GPU = """
import torch

def refuse(*arguments):
    raise AssertionError("a GPU is asked for on import, so forked workers could not use it")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = refuse
import masters.experiments.run, masters_book.commands, masters_book.imitation.results
"""


@pytest.mark.slow
def test_the_process_that_workers_are_forked_from_uses_no_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", ASKS_NO_GPU], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def environment(report: Path) -> None:
    report.write_text(os.environ["MASTERS_TEST"])


def test_each_call_gives_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("first", "second"):
        monkeypatch.setenv("MASTERS_TEST", word)
        workers.run([(environment, (tmp_path / word,))], 1, "jobs")
        assert (tmp_path / word).read_text() == word


def launch(report: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE", "ROLE_NAME", "LOCAL_DATA")
    report.write_text(" ".join(f"{name}={os.environ.get(name)}" for name in names))


def test_a_worker_is_no_rank_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE", "ROLE_NAME"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LOCAL_DATA", "disk")
    workers.run([(launch, (tmp_path / "report",))], 1, "jobs")
    found = dict(item.split("=") for item in (tmp_path / "report").read_text().split())
    assert found.pop("LOCAL_DATA") == "disk" and set(found.values()) == {"None"}


def look(folder: Path, report: Path) -> None:
    report.write_text(" ".join(progress.lines(folder)))


def test_jobs_are_reported_before_the_first_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTERS_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setattr(progress, "_last", float("-inf"))
    job = look, (tmp_path / "progress", tmp_path / "report")
    workers.run([job], 1, "jobs")
    assert (tmp_path / "report").read_text() == "jobs 0/1"
    assert progress.lines(tmp_path / "progress") == []


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(MemoryError, match=r"at work on jobs was killed, .* set fewer processes"):
        workers.run([(die, ())], 1, "jobs")


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    script, report = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(
        f"""
import sys
print("started", flush=True)
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_workers
from masters.runtime import workers
workers.run([(test_workers.note, (sys.argv[1],))], 2, "jobs")
"""
    )
    done = subprocess.run([sys.executable, script, report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["started"] and report.read_text()


def note(path: str) -> None:
    Path(path).write_text(str(os.getpid()))


if __name__ == "__main__":
    import test_workers

    workers.run([(test_workers.job, (Path(sys.argv[1]),))], 1, "jobs")
