"""What several test modules share: tiny untrained models, questions about coloured squares.

Run as a program, it is a training that dies by SIGKILL in the middle: ``python small.py FOLDER STEP``.
"""

import hashlib
import io
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from masters.data.questions import Questions, Ragged, prompt_text
from masters.models import small as models
from masters.settings import ModelSpec, TrainerOptions
from masters.training.examples import Example, Examples
from masters.training.train import Budget, train
from masters.training.trainer import MastersTrainer, Objective

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}
QUESTION_WORDS = ["what", "colour", "is", "this", "square", "?"]
ANSWER_WORDS = ["the", "answer", ".", "so", ",", "yes", "no", "a", "it"]
WORDS = sorted([*COLOURS, *QUESTION_WORDS, *ANSWER_WORDS])
BUDGET = Budget(steps=8, batch=2, learning_rate=1e-2, log_every=1, options=TrainerOptions(save_steps=3))


def stored_questions(count: int) -> pd.DataFrame:
    """Questions as a store of responses knows them."""
    return pd.DataFrame(
        {
            "content": [f"{7919 * (i + 1):016x}" for i in range(count)],
            "question": "How many?",
            "answer": [str(i) for i in range(count)],
        },
        index=[f"q{i}" for i in range(count)],
    )


def weights_hash(model: PreTrainedModel) -> str:
    """16 hexadecimal digits of the SHA-256 over the names, shapes, types and bytes of all weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def build(seed: int = 0, width: int = 16) -> tuple[PreTrainedModel, Any]:
    """An untrained model of one layer in each tower, in evaluation mode, and its processor."""
    model, processor = models.build(ModelSpec(width=width, layers=1, vision_layers=1), WORDS, seed)
    return model.eval(), processor


@contextmanager
def scratch(data: Path) -> Iterator[pytest.MonkeyPatch]:
    """A data folder of its own and one thread, as in the processes that work side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTERS_DATA", str(data))
        yield patch
    torch.set_num_threads(threads)


def diverge_at(learning_rate: float, patch: pytest.MonkeyPatch) -> None:
    """Let every training at a learning rate have a loss that is not finite."""
    loss = MastersTrainer._loss

    def broken(self: Any, *args: Any) -> torch.Tensor:
        return loss(self, *args) * (math.nan if self.args.learning_rate == learning_rate else 1)

    patch.setattr(MastersTrainer, "_loss", broken)


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (64, 64), COLOURS[colour])


def questions(folder: Path, count: int = 4) -> Questions:
    """Questions about one coloured square each, prompts of two lengths, written as the package does it."""
    processor = models.build_processor(WORDS)
    colours = [list(COLOURS)[i % len(COLOURS)] for i in range(count)]
    asked = ["what colour is this ?" if i % 2 else "what colour is this square ?" for i in range(count)]
    encoded = processor(
        text=[prompt_text(processor, question) for question in asked], images=[picture(c) for c in colours]
    )
    folder.mkdir(parents=True)
    Ragged.write(folder, "prompts", [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]])
    files = []
    for colour in colours:
        buffer = io.BytesIO()
        picture(colour).save(buffer, "PNG")
        files.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
    Ragged.write(folder, "images", files)
    pixels = np.asarray(encoded["pixel_values"])
    Ragged.write(folder, "image.pixel_values", [pixels[i : i + 1] for i in range(count)])
    table = pd.DataFrame({"id": [f"q{i}" for i in range(count)], "question": asked, "answer": colours})
    table = table.assign(task="squares", skill="colour", facts="", caption="", picture=range(count))
    table["content"] = [f"{i:016x}" for i in range(count)]
    table.to_parquet(folder / "table.parquet")
    return Questions(folder)


def tokens(text: str) -> np.ndarray:
    """A response as token ids, end token included."""
    tokenizer = models.build_processor(WORDS).tokenizer
    return np.array([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])


def labeled(asked: Questions, budget: Budget = BUDGET, die_at: int | None = None) -> Examples:
    """Supervised examples in a fixed order; the process is killed when it reads the one at ``die_at``."""
    answers = [tokens(f"{answer} .") for answer in asked.table["answer"]]

    def make(position: int) -> Example:
        if position == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        index = position % len(asked)
        return Example(index, [answers[index]])

    return Examples(budget.steps * budget.batch, make)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, step = Path(sys.argv[1]), int(sys.argv[2])
    squares = questions(where / "questions-of-the-killed")
    student, _ = build()
    train(
        student,
        squares,
        labeled(squares, die_at=step * BUDGET.batch),
        Objective(),
        BUDGET,
        where / "run",
        "killed",
    )
