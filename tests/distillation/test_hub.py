"""Models and data sets by hub name, from a server on this machine that imitates the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import hub_server
import pytest
import small

from masters.runtime.files import ROOT

pytestmark = pytest.mark.slow  # a process per test

RUN = """
student: owner/student
teachers: [{teacher}]
output_dir: out
data: {data}
responses: {{max_new_tokens: 6}}
training: {{batch: 2, push_to_hub: {push}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("student", "teacher")):
        place = tmp_path / "hub" / "owner" / name
        model, processor = small.build(seed, 16)
        model.save_pretrained(place)
        processor.save_pretrained(place)
        (place / "pytorch_model.bin").write_text("not wanted")
        (place / "onnx").mkdir()
        (place / "onnx" / "model.safetensors").write_text("not wanted")
    rows = []
    for name in small.COLOURS:
        small.picture(name).save(tmp_path / f"{name}.png")
        rows.append({"image": f"{name}.png", "question": "what colour is this square ?", "answer": name})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def _distill(
    folder: Path,
    address: str,
    *words: str,
    teacher: str = "owner/teacher",
    data: str = "{train: train.jsonl, eval: {split_from_train: 2}}",
    push: str = "null",
    token: str = "",
) -> tuple[int, str]:
    """Run the command against a hub; return its exit code and the last line of its messages."""
    (folder / "run.yaml").write_text(RUN.format(teacher=teacher, data=data, push=push))
    variables = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
    }
    variables |= {"TRANSFORMERS_OFFLINE": "0", "PYTHONPATH": str(ROOT)} | (
        {"HF_TOKEN": token} if token else {}
    )
    command = [sys.executable, "-m", "masters.cli.main", "distill", "run.yaml", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


def test_only_what_is_read_is_downloaded(folder: Path) -> None:
    with hub_server.serving(folder / "hub") as (address, downloaded):
        assert _distill(folder, address, "--check") == (0, "")
        assert not [name for name in downloaded if name.endswith(".safetensors")]
        assert _distill(folder, address)[0] == 0
    assert {"owner/student/model.safetensors", "owner/teacher/model.safetensors"} <= downloaded
    assert not [name for name in downloaded if "onnx" in name or name.endswith(".bin")]
    assert (folder / "out" / "model" / "config.json").is_file()


def test_a_name_that_the_hub_lacks_is_one_line(folder: Path) -> None:
    with hub_server.serving(folder / "hub") as (address, _):
        code, line = _distill(folder, address, "--check", teacher="owner/nobody")
    assert code == 1 and "'owner/nobody': the hub has no such model" in line


def test_a_commit_may_be_named(folder: Path) -> None:
    with hub_server.serving(folder / "hub") as (address, _):
        assert _distill(folder, address, "--check", teacher=f"owner/teacher@{hub_server.COMMIT}") == (0, "")
        code, line = _distill(folder, address, "--check", teacher="owner/teacher@nowhere")
    assert code == 1 and "'owner/teacher@nowhere': the hub has no such commit, tag or branch of it" in line


def test_a_hub_that_cannot_be_reached_is_one_line(folder: Path) -> None:
    code, line = _distill(folder, "http://127.0.0.1:9", "--check")
    assert code == 1 and "'owner/student': the hub cannot be reached" in line


def test_a_data_set_of_the_hub_is_distilled_and_a_missing_one_is_one_line(folder: Path) -> None:
    names = list(small.COLOURS)
    rows = {
        "image": [small.picture(name) for name in names],
        "question": "what colour is it ?",
        "answer": names,
    }
    rows["question"] = [rows["question"]] * len(names)
    place = folder / "hub" / "datasets" / "owner" / "colours"
    place.mkdir(parents=True)
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows).to_parquet(place / f"{split}-00000-of-00001.parquet")
    with hub_server.serving(folder / "hub") as (address, downloaded):
        code, line = _distill(folder, address, "--check", data="{train: owner/nothing}")
        assert _distill(folder, address, data="{train: owner/colours, eval: owner/colours}")[0] == 0
    assert "datasets/owner/colours/train-00000-of-00001.parquet" in downloaded
    assert json.loads((folder / "out" / "eval" / "scores.json").read_text())
    assert (
        code == 1
        and "data.train: 'owner/nothing' is neither a file nor a folder, and loading it from the hub" in line
    )


def test_the_student_is_uploaded_and_is_kept_where_the_upload_fails(folder: Path) -> None:
    push = {"push": "owner/new", "token": "secret"}
    with hub_server.serving(folder / "hub", writable=False) as (address, _):
        code, line = _distill(folder, address, **push)
    assert code == 1 and "model is complete, and its upload failed (403" in line
    with hub_server.serving(folder / "hub") as (address, _):
        assert _distill(folder, address, **push) == (0, "")
    student, there = folder / "out" / "model", folder / "hub" / "owner" / "new"
    names = sorted(path.name for path in student.iterdir())
    assert sorted(path.name for path in there.iterdir() if path.name != ".gitattributes") == names
    assert (there / "model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("push", "token", "said"),
    [
        ("owner/new", "", "you are not logged in: hf auth login"),
        ("other/new", "secret", "it must begin with one of owner/"),
        ("new", "secret", "it must begin with one of owner/"),
    ],
)
def test_an_upload_that_would_fail_is_refused_before_the_work(
    folder: Path, push: str, token: str, said: str
) -> None:
    with hub_server.serving(folder / "hub") as (address, downloaded):
        code, line = _distill(folder, address, "--check", push=push, token=token)
    assert code == 1 and f"push_to_hub: {push}" in line and said in line and not downloaded
