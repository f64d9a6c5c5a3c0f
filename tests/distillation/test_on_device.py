"""The on-device example: a table of student and teacher, each measured in a process of its own."""

import multiprocessing
import runpy
from importlib.util import find_spec
from pathlib import Path

import own_models
import pandas as pd
import pytest
import small

from masters.runtime.files import ROOT


def test_the_table_has_a_row_per_model_and_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_models.models(tmp_path)
    own_models.rows(tmp_path)
    student, processor = small.build(seed=3)
    for saved in (student, processor):
        saved.save_pretrained(tmp_path / "out" / "model")
    monkeypatch.setenv("MASTERS_CACHE", str(tmp_path / "out" / "responses"))
    # Forked, because a new interpreter takes seconds to import torch.
    forked = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: forked)
    script = str(ROOT / "examples" / "on_device.py")
    monkeypatch.setattr("sys.argv", [script, str(own_models.file(tmp_path)), str(tmp_path / "table.csv")])
    with small.scratch(tmp_path / "data"):
        runpy.run_path(script, run_name="__main__")

    table = pd.read_csv(tmp_path / "table.csv").set_index("model")
    forms = ["teacher large", "student", "student, 8 bit"]
    if find_spec("onnxscript") and find_spec("onnxruntime"):
        forms.append("student, ONNX")
    assert list(table.index) == forms
    weights = sum(parameter.numel() for parameter in student.parameters())
    assert table["weights"]["student"] == table["weights"]["student, 8 bit"] == weights
    assert table["weights"]["teacher large"] > weights
    size = table["size, MiB"]
    assert size["student"] == pytest.approx(4 * weights / 2**20, abs=0.01)
    assert size["student, 8 bit"] < size["student"]
    assert (table["CPU ms per question"] > 0).all()
    same = table["next token as student, %"]
    assert (same.drop(["teacher large", "student, 8 bit"]) == 100).all()
    assert same.between(0, 100).all()
