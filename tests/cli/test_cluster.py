"""Generation on a local Ray cluster of two workers, one of which is killed in the middle."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from labs import profile

from masters.cli.cluster import make_on_ray
from masters.experiments import response_plan
from masters.experiments.curriculum import WantedResponses
from masters.experiments.lab import Lab

pytest.importorskip("ray", reason="Ray is not installed: pip install ray")

WANTED = [WantedResponses("student", 0.0, 8), WantedResponses("large", 0.5, 8)]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Lab]:
    threads = torch.get_num_threads()
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path))
    made = Lab(profile(questions=600).model_copy(update={"processes": 2, "train_questions": 600}))
    yield made
    torch.set_num_threads(threads)


def workers() -> list[psutil.Process]:
    """The processes in which tasks of this file run."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "_share" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(lab: Lab) -> None:
    lab.folder("large")
    killed: list[int] = []
    stop = threading.Event()

    def kill_one() -> None:
        while not stop.wait(0.05):
            at_work = workers()
            if at_work and list(lab.store(WANTED[0].model, WANTED[0].ratio).folder.glob("part-*")):
                os.kill(at_work[0].pid, signal.SIGKILL)
                killed.append(at_work[0].pid)
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        make_on_ray(lab, dict.fromkeys(WANTED, lab.pool), 6, "local")
    finally:
        stop.set()
        killer.join()
    assert killed
    for what in WANTED:
        assert response_plan.status(lab, what, lab.pool).missing == 0
        store = lab.store(what.model, what.ratio)
        assert not store.verify()
        rows = sum(line.rows for line in store.held().lines)
        again = lab.responses(what)
        assert len(again) == 8 * len(lab.pool) <= rows
        assert sum(line.rows for line in store.held().lines) == rows  # nothing was made again


@pytest.mark.slow
def test_no_cluster_is_one_clear_line(lab: Lab) -> None:
    with pytest.raises(ValueError, match=r"no Ray cluster at '127.0.0.1:1'") as error:
        make_on_ray(lab, dict.fromkeys(WANTED, lab.pool), 2, "127.0.0.1:1")
    assert "\n" not in str(error.value)
