"""The commands about responses, given a run file: they make and show what ``masters distill`` reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_models
import pandas as pd
import pytest
import small
import torch
from click.testing import Result
from typer.testing import CliRunner

import masters
from masters.cli import main as cli
from masters.masking.teacher_mask import TeacherMask
from masters.models.loading import load


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with small.scratch(tmp_path / "data"):
        monkeypatch.setenv("MASTERS_CACHE", str(tmp_path / "out" / "responses"))
        own_models.models(tmp_path)
        own_models.rows(tmp_path)
        yield own_models.file(tmp_path)


def command(*arguments: str | Path) -> Result:
    result: Any = CliRunner().invoke(cli.app, list(map(str, arguments)), env={"COLUMNS": "200"})
    return result


def shards(run_file: Path) -> list[Path]:
    return sorted((run_file.parent / "out" / "responses" / "responses").rglob("part-*.parquet"))


def test_responses_that_several_machines_generate_are_those_that_the_run_reads(run_file: Path) -> None:
    planned = command("generate", run_file, "--dry-run")
    assert planned.exit_code == 0 and "responses to 8 questions" in planned.output and not shards(run_file)
    for index in "01":
        assert command("generate", run_file, "--shard-index", index, "--num-shards", "2").exit_code == 0
    made = shards(run_file)
    assert sum(len(pd.read_parquet(path)) for path in made) == 8 * (2 + 2)
    question = pd.concat(map(pd.read_parquet, made))["question"].iloc[0]
    picture = run_file.parent / "picture.png"
    assert "student" in command("responses", "show", run_file, question, "--image", picture).output
    assert picture.is_file()
    assert command("responses", "status", run_file).exit_code == 0
    assert "nothing damaged" in command("responses", "verify", run_file).output
    assert "judged by rule" in command("judge", run_file).output
    masters.distill(run_file, [].append)
    assert shards(run_file) == made


def test_a_masked_teacher_of_a_run_file_is_saved_for_a_server(run_file: Path, tmp_path: Path) -> None:
    own_models.file(run_file.parent, training={"batch": 4, "accumulate": 4})
    assert command("export", run_file, "large", tmp_path / "large-0.5", "--ratio", "0.5").exit_code == 0
    ours, theirs = load(tmp_path / "teacher")[0], load(tmp_path / "large-0.5")[0]
    with TeacherMask(ours).apply(0.5):
        pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_method_is_named_in_the_file_and_has_to_read_responses(run_file: Path) -> None:
    named = command("generate", run_file, "--arm", "masked")
    assert named.exit_code == 1 and "names its method itself" in str(named.exception)
    own_models.file(run_file.parent, method="sft", teachers=[])
    refused = command("generate", run_file)
    assert refused.exit_code == 1 and "method 'sft' reads no responses" in str(refused.exception)
    missing = command("generate", run_file.with_name("none.yaml"))
    assert missing.exit_code == 1 and "none.yaml" in str(missing.exception)
