"""Two real processes under torchrun, on the CPU, against one process on the same global batches."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from packaging.requirements import Requirement

from masters.cli import main as cli
from masters.experiments import lab as experiments
from masters.experiments import results as one_run
from masters.runtime import distributed
from masters.runtime.files import ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
KINDS = ["ddp", "tokens", "shards", "resumed", "diverged", "fsdp2"]
LAUNCH = ROOT / "masters" / "launch"
Made = list[dict[str, Any]]


def run(*command: str, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        command, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def alone_and_two(folder: Path, *kinds: str, **environment: str) -> Made:
    """What one process alone ended with, and each of two."""
    run(sys.executable, ranks.__file__, str(folder), *kinds, **environment)
    run(*TORCHRUN, ranks.__file__, str(folder), *kinds, **environment)
    names = ("1-0", "2-0", "2-1")
    return [torch.load(folder / f"{kinds[0]}-{name}.pt", weights_only=False) for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return alone_and_two(tmp_path_factory.mktemp("ranks"), *KINDS)


def distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """How far two trained models are apart, as a share of how far training moved one of them."""
    start = ranks.models()[0].state_dict()
    names = expected["weights"].keys() & start.keys()

    def apart(first: dict[str, Any], second: dict[str, Any]) -> float:
        return sum(float((first[name] - second[name]).square().sum()) for name in names) ** 0.5

    assert len(names) > 20
    return apart(found["weights"], expected["weights"]) / apart(expected["weights"], start)


@pytest.mark.slow
@pytest.mark.parametrize("averaging", ["ddp", "tokens"])
def test_two_processes_take_the_steps_of_one(made: Made, averaging: str) -> None:
    alone, *two = (one[averaging] for one in made)
    assert alone["wrapper"] == {"LlavaForConditionalGeneration"} and alone["processes"] == {1}
    # With an average over tokens, other parts are logged as the plain mean of the ranks.
    logged = alone["log"].keys() - {"seconds"}
    if averaging == "tokens":
        logged = {"loss", "grad_norm", "learning_rate", "step"}
    for one in two:
        assert one["wrapper"] == {"DistributedDataParallel"} and one["processes"] == {2}
        assert one["log"].keys() == alone["log"].keys()
        for name in logged:
            assert one["log"][name] == pytest.approx(alone["log"][name], abs=1e-5), name
        assert distance(one, alone) < 1e-2
    for name, value in two[0]["weights"].items():
        assert torch.equal(value, two[1]["weights"][name])


@pytest.mark.slow
def test_each_rank_reads_its_part_of_every_batch_in_order_at_the_same_stage(made: Made) -> None:
    alone, first, second = (one["ddp"] for one in made)
    batches = [list(range(start, start + 4)) for start in range(0, 24, 4)]
    assert alone["read"] == [i for batch in batches for i in batch]
    assert first["read"] == [i for batch in batches for i in batch[:2]]
    assert second["read"] == [i for batch in batches for i in batch[2:]]
    assert first["stages"] == second["stages"] == alone["stages"] == [s for s in ranks.STAGES for _ in "12"]


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_ends_bit_for_bit_as_if_undisturbed(made: Made) -> None:
    for one in made:
        assert one["resumed"]["stages"] == one["ddp"]["stages"][4:], "what was trained is not trained again"
        assert one["resumed"]["log"]["loss"] == one["ddp"]["log"]["loss"]
        for name, value in one["ddp"]["weights"].items():
            assert torch.equal(value, one["resumed"]["weights"][name])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_with_the_same_line(made: Made) -> None:
    told = {one["diverged"] for one in made}
    assert told == {
        "the loss is nan at step 2; lower the learning rate (0.003) or use the clipped ratio",
    }


def check_sharded(alone: dict[str, Any], two: Made, kinds: set[str], wrapper: str) -> None:
    assert alone["kinds"] == {"Parameter", "LlavaPreTrainedModel"}
    for one in two:
        assert one["kinds"] == kinds and one["wrapper"] == wrapper
        assert one["local"] < 0.6 * alone["local"]
        assert one["losses"] == pytest.approx(alone["losses"], abs=1e-6)
        assert one["ratio"] == alone["ratio"] == 0.2
        assert distance(one, alone) < 1e-2
    assert sum(one["local"] for one in two) >= alone["local"]
    for name, value in two[0]["weights"].items():
        assert torch.equal(two[0]["taken"][name], value), "what rank 0 evaluates and saves"


@pytest.mark.slow
def test_fsdp2_student_teacher_and_reference_take_the_steps_of_one_process(made: Made) -> None:
    alone, *two = (one["fsdp2"] for one in made)
    wrapper = "FSDPLlavaForConditionalGeneration"
    check_sharded(alone, two, {"DTensor", "FSDPModule"}, wrapper)
    assert [one["beside"] for one in (alone, *two)] == [{"Parameter"}, {"DTensor"}, {"DTensor"}]


@pytest.mark.slow
def test_a_run_with_teachers_and_reference_in_shards_has_the_losses_of_one_process(made: Made) -> None:
    """From one mask and one teacher to the next, which the Trainer sees to."""
    alone, two = made[0]["ddp"], [one["shards"] for one in made[1:]]
    assert alone["beside"] == {"Parameter"}
    for one, whole in zip(two, made[1:], strict=True):
        assert one["beside"] == {"DTensor"} and one["processes"] == {2}
        assert one["stages"] == alone["stages"] and len(set(one["stages"])) == 3
        for name in alone["log"].keys() - {"seconds"}:
            assert one["log"][name] == pytest.approx(alone["log"][name], abs=1e-5), name
        assert one["log"]["loss"] == pytest.approx(whole["ddp"]["log"]["loss"], abs=1e-6)
    assert distance(two[0], alone) < 1e-2, "what rank 0 evaluates and saves"


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not among the pinned packages: make test-extras",
)
def test_zero3_student_takes_the_steps_of_one_process(tmp_path: Path) -> None:
    alone, *two = (one["zero3"] for one in alone_and_two(tmp_path, "zero3"))
    check_sharded(alone, two, {"Parameter", "LlavaPreTrainedModel"}, "DeepSpeedEngine")


@pytest.mark.slow
def test_an_arm_on_two_processes_gives_the_result_of_one(tmp_path: Path) -> None:
    """Rank 0 makes what is missing, in workers of its own, evaluates and writes; the other waits."""
    environment = {"MASTERS_DATA": str(tmp_path / "one")}
    run(sys.executable, ranks.__file__, str(tmp_path), "run", **environment)
    unmade = shutil.ignore_patterns("runs", "distributions")
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=unmade)
    environment = {"MASTERS_DATA": str(tmp_path / "two")}
    told = run(*TORCHRUN, ranks.__file__, str(tmp_path), "run", **environment)
    assert told.count("memory per device: about") == 1
    names = ("1-0", "2-0", "2-1")
    alone, *two = (torch.load(tmp_path / f"run-{name}.pt", weights_only=False)["run"] for name in names)
    assert two[0]["result"] == two[1]["result"]
    for one in two:
        assert one["log"]["loss"].tolist() == pytest.approx(alone["log"]["loss"].tolist(), abs=1e-4)
        assert one["result"]["accuracy"] == pytest.approx(alone["result"]["accuracy"], abs=0.13)
    runs = tmp_path / "two" / "cache" / "runs"
    assert len([path for path in runs.iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize(
    ("rank", "told", "line"),
    [
        ("0", True, "masters: what is wrong\n"),
        ("1", True, ""),
        ("1", False, "masters: rank 1: what is wrong\n"),
        (None, False, "masters: what is wrong\n"),
    ],
)
def test_an_error_that_all_ranks_meet_is_told_once_and_any_other_by_its_rank(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str | None,
    told: bool,
    line: str,
) -> None:
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as left:
        cli._stop("what is\nwrong", told=told)
    assert left.value.code == 1 and capsys.readouterr().err == line


def test_masters_train_runs_one_arm_and_tells_its_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[Any] = []

    def run_arm(lab: experiments.Lab, name: str, seed: int) -> Path:
        asked.append((lab.profile.name, name, seed))
        (tmp_path / "result.json").write_text('{"accuracy": 0.625}')
        return tmp_path

    monkeypatch.setattr(one_run, "run_arm", run_arm)
    monkeypatch.setattr(sys, "argv", ["masters", "train", "smoke", "r_max=0.4", "--seed", "3"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0 and asked == [("smoke", "r_max=0.4", 3)]
    assert capsys.readouterr().out == f"r_max=0.4, seed 3: accuracy 62.5 %, {tmp_path}\n"


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import small

    monkeypatch.setenv("WORLD_SIZE", "3")
    asked, budget = small.questions(tmp_path / "questions"), small.BUDGET
    rest = (small.labeled(asked), ranks.Objective(), budget, tmp_path / "run", "a run")
    with pytest.raises(ValueError, match="a batch of 2 questions cannot be shared by 3 processes"):
        ranks.train(small.build()[0], asked, *rest)


# --- launch files ---


def launched(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, str]]:
    """What ``accelerate launch`` makes of a file: its arguments, and what it puts into the environment."""
    command = ["--config_file", str(LAUNCH / name), "--num_processes", "2", "-m", "masters.cli.main", "train"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    before = dict(os.environ)
    set_now = {k: v for k, v in prepare_multi_gpu_env(arguments).items() if before.get(k) != v}
    for key, value in set_now.items():
        monkeypatch.setenv(key, value)
    return arguments, set_now


def test_the_launch_files_are_shipped_and_say_how_they_are_used() -> None:
    assert sorted(path.name for path in LAUNCH.iterdir()) == ["ddp.yaml", "fsdp2.yaml", "zero3.yaml"]
    for path in LAUNCH.iterdir():
        assert f"accelerate launch --config_file masters/launch/{path.name} " in path.read_text()
        assert load_config_from_file(str(path)).num_processes == 8
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "launch/*.yaml" in package_data["package-data"]["masters"]


def test_the_ddp_file_starts_plain_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, environment = launched("ddp.yaml", monkeypatch)
    assert arguments.multi_gpu and arguments.num_processes == 2 and not arguments.use_fsdp
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no", "a profile says what is in bfloat16"
    assert distributed.asked_for() is None


def test_the_fsdp2_file_asks_for_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _ = launched("fsdp2.yaml", monkeypatch)
    monkeypatch.delenv("FSDP_TRANSFORMER_CLS_TO_WRAP", raising=False)
    student = ranks.models()[0]
    distributed.name_layers(student)
    plugin = FullyShardedDataParallelPlugin()
    assert arguments.use_fsdp and distributed.asked_for() == "FSDP"
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT", "rank 0 evaluates and saves the whole student"
    plugin.set_auto_wrap_policy(student)
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {layer.__name__ for layer in wrapped} >= {"Qwen2DecoderLayer", "CLIPEncoderLayer"}


def test_the_zero3_file_asks_for_stage_three() -> None:
    config = load_config_from_file(str(LAUNCH / "zero3.yaml"))
    assert config.distributed_type.name == "DEEPSPEED"
    asked = config.deepspeed_config
    assert asked["zero_stage"] == 3 and asked["zero3_save_16bit_model"] is True
    assert asked["zero3_init_flag"] is False, "teachers and reference stay whole"
    assert asked["gradient_clipping"] == 1.0, "the Trainer's max_grad_norm"
    assert yaml.safe_load((LAUNCH / "zero3.yaml").read_text())["deepspeed_config"] == asked
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [Requirement(text).name for text in extras["deepspeed"]] == ["deepspeed"]


def test_gathered_weights_of_another_model_are_refused() -> None:
    model = ranks.models()[0]
    weights = {name: value + 1 for name, value in model.state_dict().items() if name != "lm_head.weight"}
    distributed.load_whole(model, weights)
    shared = weights["model.language_model.embed_tokens.weight"]
    assert torch.equal(model.state_dict()["lm_head.weight"], shared)
    with pytest.raises(ValueError, match=r"missing \['model.language_model.norm.weight'\], unknown \[\]"):
        distributed.load_whole(model, {k: v for k, v in weights.items() if "language_model.norm" not in k})
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['other'\]"):
        distributed.load_whole(model, weights | {"other": torch.ones(1)})


@pytest.mark.parametrize(
    ("environment", "made", "words"),
    [
        ({"WORLD_SIZE": "2"}, (1, "NO"), "2 processes were started but accelerate uses 1"),
        ({"ACCELERATE_USE_FSDP": "true"}, (1, "MULTI_CPU"), "sets FSDP but accelerate uses MULTI_CPU"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, (1, "NO"), "sets DEEPSPEED but accelerate uses NO"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, (2, "FSDP"), None),
        ({}, (1, "NO"), None),
    ],
)
def test_a_launch_that_accelerate_changes_silently_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], made: tuple[int, str], words: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if words is None:
        distributed.check_launched(*made)
    else:
        with pytest.raises(ValueError, match=words):
            distributed.check_launched(*made)


@pytest.mark.slow
def test_fsdp_on_a_cpu_is_refused_instead_of_becoming_ddp(tmp_path: Path) -> None:
    told = run(
        *TORCHRUN, ranks.__file__, str(tmp_path), "ddp", code=1, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2"
    )
    assert "the launch file sets FSDP but accelerate uses MULTI_CPU" in told
