"""Two real processes under torchrun, on the CPU, against one process on the same global batches."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from masters import distributed

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def alone_and_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process alone ended with, and each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    run(sys.executable, ranks.__file__, str(folder))
    run(*TORCHRUN, ranks.__file__, str(folder))
    return [torch.load(folder / f"{name}.pt", weights_only=False) for name in ("1-0", "2-0", "2-1")]


def distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """How far two trained models are apart, as a share of how far training moved one of them."""
    start = ranks.models()[0].state_dict()
    names = expected["weights"].keys() & start.keys()

    def apart(first: dict[str, Any], second: dict[str, Any]) -> float:
        return sum(float((first[name] - second[name]).square().sum()) for name in names) ** 0.5

    assert len(names) > 20
    return apart(found["weights"], expected["weights"]) / apart(expected["weights"], start)


@pytest.mark.parametrize("averaging", ["ddp", "tokens"])
def test_two_processes_take_the_steps_of_one(
    alone_and_two: list[dict[str, Any]], averaging: str
) -> None:
    alone, *two = (made[averaging] for made in alone_and_two)
    assert alone["wrapper"] == {"LlavaForConditionalGeneration"} and alone["processes"] == {1}
    for one in two:
        assert one["wrapper"] == {"DistributedDataParallel"} and one["processes"] == {2}
        assert one["log"].keys() == alone["log"].keys()
        # With an average over tokens, other parts are logged as the plain mean of the ranks.
        logged = alone["log"] if averaging == "ddp" else ("loss", "grad_norm", "learning_rate", "step")
        for name in logged:
            values = alone["log"][name]
            assert one["log"][name] == pytest.approx(values, abs=1e-5), name
        assert distance(one, alone) < 1e-2
        assert not one["left"]
    for name, value in two[0]["weights"].items():
        assert torch.equal(value, two[1]["weights"][name])


def test_each_rank_reads_its_part_of_every_batch_in_order_at_the_same_stage(
    alone_and_two: list[dict[str, Any]],
) -> None:
    alone, first, second = (made["ddp"] for made in alone_and_two)
    batches = [alone["read"][start : start + 4] for start in range(0, 24, 4)]
    assert batches == [list(range(start, start + 4)) for start in range(0, 24, 4)]
    assert first["read"] == [i for batch in batches for i in batch[:2]]
    assert second["read"] == [i for batch in batches for i in batch[2:]]
    assert first["stages"] == second["stages"] == alone["stages"] == [s for s in ranks.STAGES for _ in "12"]


def test_sharded_student_teacher_and_reference_take_the_steps_of_one_process(
    alone_and_two: list[dict[str, Any]],
) -> None:
    alone, *two = (made["fsdp2"] for made in alone_and_two)
    assert alone["kinds"] == {"Parameter", "LlavaPreTrainedModel"}
    for one in two:
        assert one["kinds"] == {"DTensor", "FSDPModule"}
        assert one["local"] < 0.6 * alone["local"]
        assert one["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        assert distance(one, alone) < 1e-2
    assert sum(one["local"] for one in two) == alone["local"]
