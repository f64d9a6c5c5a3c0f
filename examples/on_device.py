"""Measure the student of a finished run on one core: beside its teachers, with 8-bit weights, and as ONNX.

Usage:
    python examples/on_device.py run.yaml [table.csv]

The ONNX file is written to OUTPUT_DIR/student.onnx; it reads a picture and a question and returns the logits
of the next token. It needs ``pip install onnxscript onnxruntime``; without them, the table has no such row.
"""

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

from masters.distillation.run_file import RunFile, load_run_file
from masters.models.loading import load, skeleton, token_types
from masters.own_data.question_set import encode_own, load_own_data
from masters.runtime.checksums import SUMS
from masters.runtime.files import write_atomic
from masters.settings import place_of_model
from masters_book.results.intact import write_intact
from masters_book.study.provenance import machine

QUESTIONS = 40
TYPES = ("token_type_ids", "mm_token_type_ids")  # one per token, as input_ids
Next = Callable[[dict[str, torch.Tensor]], torch.Tensor]  # from the inputs to the logits of the next token


def inputs_of(run: RunFile, processor: Any, model: Any) -> list[dict[str, torch.Tensor]]:
    """Return the inputs of some evaluation questions, without an attention mask: nothing is padded."""
    questions = encode_own(load_own_data(run.data, run.folder), "eval", processor)
    found = []
    for index in range(min(QUESTIONS, len(questions))):
        ids = torch.from_numpy(questions.prompt(index).astype("int64"))[None]
        found.append({"input_ids": ids, **questions.image_features([index]), **token_types(model, ids)})
    return found


class LastLogits(torch.nn.Module):
    """A model that returns the logits of the next token."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**inputs, use_cache=False).logits[:, -1]


def export(model: Any, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """Write a model as ONNX, for questions of any length with pictures of the size of these inputs."""
    from onnxscript import opset18 as op

    def is_all_true(x: Any) -> Any:  # which torch's exporter lacks
        return op.Cast(op.ReduceMin(op.Cast(x, to=6), keepdims=0), to=9)

    length = torch.export.Dim("length", min=2, max=4096)
    by_length = {name: {1: length} if name in ("input_ids", *TYPES) else None for name in inputs}
    program = torch.onnx.export(
        LastLogits(model).eval(),
        kwargs={"inputs": inputs},
        dynamo=True,
        dynamic_shapes={"inputs": by_length},
        input_names=list(inputs),
        custom_translation_table={torch.ops.aten._is_all_true.default: is_all_true},
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


def opened(kind: str, folder: str, onnx: Path) -> tuple[Next, int]:
    """Return a model in one of three forms, and its bytes: of the weights in memory, or of the ONNX file."""
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(onnx, options)

        def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            arrays = {name: value.numpy() for name, value in inputs.items()}
            return torch.from_numpy(session.run(None, arrays)[0])

        # Weights of more than 2 GB lie in a second file.
        return forward, sum(path.stat().st_size for path in onnx.parent.glob(f"{onnx.name}*"))
    model, _ = load(folder, dtype="float32", device_map="cpu")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if kind == "int8":
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        size -= sum(m.weight.numel() * (m.weight.element_size() - 1) for m in linear)
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    return LastLogits(model), size


@torch.no_grad()
def measure(folder: str, kind: str, onnx: Path, inputs: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Measure one form of a model in this process: bytes, memory, CPU time, and the next tokens."""
    torch.set_num_threads(1)
    before = psutil.Process().memory_info().rss
    forward, size = opened(kind, folder, onnx)
    seconds, tokens = [], []
    for question in [inputs[0], *inputs]:  # the first warms up
        start = time.thread_time()
        tokens.append(int(forward(question).argmax()))
        seconds.append(time.thread_time() - start)
    after = psutil.Process().memory_info().rss
    return {
        "size, MiB": size / 2**20,
        "memory, MiB": (after - before) / 2**20,
        "CPU ms per question": 1000 * statistics.median(seconds[1:]),
        "tokens": tokens[1:],
    }


def table(run_file: Path) -> pd.DataFrame:
    """Return one row per model and form; each is measured in a process of its own."""
    run = load_run_file(run_file)
    os.environ.setdefault("MASTERS_CACHE", str(run.output / "responses"))
    student, onnx = str(run.output / "model"), run.output / "student.onnx"
    model, processor = load(student, dtype="float32", device_map="cpu")
    inputs = inputs_of(run, processor, model)
    teachers = zip(run.rungs, run.teachers, strict=True)
    wanted = {f"teacher {rung}": (place_of_model(of.path, run.folder), "float32") for rung, of in teachers}
    wanted |= {"student": (student, "float32"), "student, 8 bit": (student, "int8")}
    if find_spec("onnxscript") and find_spec("onnxruntime"):
        try:
            export(model, inputs[0], onnx)
            wanted["student, ONNX"] = (student, "onnx")
        except Exception as error:  # the exporter fails in many ways; the other rows do not need it
            print(f"no ONNX: {' '.join(str(error).split())[:300]}", file=sys.stderr)
    rows = {}
    for name, (folder, kind) in wanted.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (folder, kind, onnx, inputs))
        rows[name] = {"weights": skeleton(folder).num_parameters(), **found}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    own = frame["tokens"]["student"]
    frame["next token as student, %"] = [
        100 * sum(a == b for a, b in zip(own, other, strict=True)) / len(own) for other in frame["tokens"]
    ]
    return frame.drop(columns="tokens").round(2).reset_index()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python examples/on_device.py RUN_FILE [TABLE.csv]")
    measured = table(Path(sys.argv[1]).absolute())
    measured["measured on"] = f"{machine()['processor']}, {date.today()}"
    print(measured.to_string(index=False))
    if len(sys.argv) == 3:
        target = Path(sys.argv[2])
        write = write_intact if (target.parent / SUMS).is_file() else write_atomic
        write(target, measured.to_csv(index=False))
