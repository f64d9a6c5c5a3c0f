"""The shell commands about responses, on an untrained-looking ladder of a tiny profile."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from click.testing import Result
from judge_server import serving
from labs import profile
from PIL import Image
from typer.testing import CliRunner

from masters.cli import main as cli
from masters.experiments import lab as experiments
from masters.experiments import response_plan
from masters.experiments.curriculum import WantedResponses
from masters.experiments.lab import Lab
from masters.experiments.response_plan import ResponsePlan, prepare
from masters.masking.teacher_mask import TeacherMask
from masters.models.loading import load
from masters.runtime.files import write_atomic
from masters.settings import LanguageJudge


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("generation")
    with small.scratch(folder) as patch:
        patch.setattr(experiments, "load_profile", lambda name: profile())
        yield folder


@pytest.fixture
def lab(data: Path) -> Lab:
    return Lab("tiny")


def masters(*arguments: str) -> Result:
    result: Any = CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200"})
    return result


def missing(lab: Lab) -> list[int]:
    return [
        response_plan.status(lab, what, lab.pool).missing
        for what in ResponsePlan.of_arm(lab, "masters").responses
    ]


def test_an_arm_wants_every_stage_of_its_teachers(lab: Lab) -> None:
    wanted = {(what.model, what.ratio): what.n for what in ResponsePlan.of_arm(lab, "masters").responses}
    assert wanted == {("large", 0.2): 2, ("large", 0.1): 2, ("large", 0.0): 2, ("student", 0.0): 2}
    two = {what.model for what in ResponsePlan.of_arm(lab, "mid_then_large").responses}
    assert two == {"student", "mid", "large"}
    with pytest.raises(ValueError, match="reads no responses"):
        ResponsePlan.of_arm(lab, "sft")


def test_shares_are_all_questions_once() -> None:
    shares = [response_plan.shard(range(10), part, 3) for part in range(3)]
    assert sorted(question for share in shares for question in share) == list(range(10))
    for index, number in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="counts from 0"):
            response_plan.shard(range(10), index, number)


def test_generate_in_two_shares_then_nothing_is_missing(data: Path, lab: Lab) -> None:
    plan = masters("generate", "tiny", "--dry-run")
    assert plan.exit_code == 0 and "large" in plan.output
    assert not list(data.glob("cache/responses/*/part-*")) and sum(missing(lab)) == 4 * 2 * 6
    first = masters("generate", "tiny", "--shard-index", "0", "--num-shards", "2")
    assert first.exit_code == 0 and "training the ladder first" in first.output and missing(lab) == [6] * 4
    second = masters("generate", "tiny", "--shard-index", "1", "--num-shards", "2")
    assert second.exit_code == 0 and missing(lab) == [0] * 4
    shards = sorted(data.glob("cache/responses/*/part-*"))
    assert masters("generate", "tiny").exit_code == 0
    assert sorted(data.glob("cache/responses/*/part-*")) == shards
    status = masters("responses", "status", "tiny")
    assert status.exit_code == 0 and "12" in status.output


def test_what_is_generated_is_what_a_run_reads(data: Path, lab: Lab) -> None:
    assert masters("generate", "tiny").exit_code == 0
    before = sorted(data.glob("cache/responses/*/part-*"))
    prepare(lab, ResponsePlan.of_arm(lab, "masters"))
    assert sorted(data.glob("cache/responses/*/part-*")) == before


def test_judge_counts_what_the_store_says(data: Path) -> None:
    result = masters("judge", "tiny")
    assert result.exit_code == 0 and "judged by rule" in result.output and "%" in result.output
    refused = masters("judge", "tiny", "--server", "http://localhost:1/v1")
    assert refused.exit_code == 1 and "--model" in str(refused.exception)


def test_the_judge_of_the_profile_or_of_the_shell_is_asked(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        asked = masters("judge", "tiny", "--server", server.url, "--model", "grader")
        assert asked.exit_code == 0 and "judged by llm-grader" in asked.output
        assert {request["model"] for request in server.requests} == {"grader"}
        judge = LanguageJudge(server=server.url, model="of-the-profile")
        named = profile().model_copy(update={"judge": judge})
        monkeypatch.setattr(experiments, "load_profile", lambda name: named)
        server.requests.clear()
        assert "judged by llm-of-the-profile" in masters("judge", "tiny").output
        assert {request["model"] for request in server.requests} == {"of-the-profile"}


def test_show_prints_a_group_and_writes_its_picture(data: Path, lab: Lab, tmp_path: Path) -> None:
    masters("generate", "tiny")
    question = lab.questions("train").table["id"].iloc[lab.pool[0]]
    path = tmp_path / "picture.png"
    result = masters("responses", "show", "tiny", question, "--image", str(path))
    assert result.exit_code == 0 and "student" in result.output
    assert Image.open(path).size == (64, 64)
    unknown = masters("responses", "show", "tiny", "nothing")
    assert unknown.exit_code == 1 and "no question 'nothing'" in str(unknown.exception)


def test_verify_names_the_shard_and_deleting_it_mends_the_store(data: Path, lab: Lab) -> None:
    masters("generate", "tiny")
    old = data / "cache" / "responses" / "of-a-former-version"
    write_atomic(old / "spec.json", '{"version": 1}')
    assert "4 stores, nothing damaged" in masters("responses", "verify").output
    write_atomic(old / "spec.json", "{")
    refused = masters("responses", "verify")
    assert refused.exit_code == 1 and "of-a-former-version" in str(refused.exception)
    shutil.rmtree(old)
    shard = sorted(data.glob("cache/responses/*/part-*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:-9])
    result = masters("responses", "verify")
    assert result.exit_code == 1
    assert shard.name in result.output.replace("\n", "") and "responses of" in result.output
    shard.unlink()
    assert sum(missing(lab)) > 0
    assert masters("generate", "tiny").exit_code == 0
    assert missing(lab) == [0] * 4
    assert "nothing damaged" in masters("responses", "verify").output


def test_an_exported_model_is_the_masked_one(data: Path, lab: Lab, tmp_path: Path) -> None:
    result = masters("export", "tiny", "large", str(tmp_path / "out"), "--ratio", "0.5")
    assert result.exit_code == 0
    ours, _ = load(lab.folder("large"))
    theirs, processor = load(tmp_path / "out")
    with TeacherMask(ours).apply(0.5):
        for (_, one), (_, other) in zip(
            sorted(ours.named_parameters()), sorted(theirs.named_parameters()), strict=True
        ):
            assert torch.equal(one, other)
    assert processor.chat_template == lab.processor.chat_template
    again = masters("export", "tiny", "large", str(tmp_path / "out"))
    assert again.exit_code == 1 and "exists" in str(again.exception)
    unknown = masters("export", "tiny", "huge", str(tmp_path / "other"))
    assert unknown.exit_code == 1 and "there are: student, mid, large" in str(unknown.exception)
    wrong = masters("export", "tiny", "large", str(tmp_path / "other"), "--ratio", "1.5")
    assert wrong.exit_code == 2 and not (tmp_path / "other").exists()


def test_a_large_store_is_divided_among_processes(data: Path) -> None:
    lab = Lab(profile().model_copy(update={"processes": 2}))
    large, small_one = WantedResponses("large", 0.4, 2), WantedResponses("large", 0.3, 2)
    response_plan.make_all(lab, {large: lab.pool, small_one: lab.pool[:1]})
    parts = [len(lab.store(wanted.model, wanted.ratio).shards()) for wanted in (large, small_one)]
    assert parts == [2, 1]
    assert response_plan.status(lab, large, lab.pool).missing == 0
