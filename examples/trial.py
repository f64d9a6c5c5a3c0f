"""Make a folder to try `masters distill` on: two small trained models, pictures, questions and a run file.

Usage:
    python examples/trial.py trial          # about two minutes on two cores, no downloads
    masters distill trial/run.yaml          # about one minute
"""

import json
import shutil
import sys
from pathlib import Path

from masters import Lab, load_profile
from masters.data.tasks import load_task
from masters.settings import ModelSpec

RUN = """\
student: student
teachers: teacher
output_dir: out
data: {train: train.jsonl, eval: eval.jsonl}
responses: {max_new_tokens: 24}
loss: {policy_weight: 0.1}
training: {learning_rate: 1.0e-3, lr_schedule: linear, epochs: 4, batch: 16}
"""


def lab() -> Lab:
    """Return a lab with a weak student and a better teacher for one built-in question set."""
    common = {"layers": 1, "caption_steps": 300, "batch": 16, "learning_rate": 3e-3}
    ladder = {
        "student": ModelSpec(width=24, steps=800, **common),
        "large": ModelSpec(width=64, steps=2500, **common),
    }
    changes = {"tasks": ("easy-vqa",), "train_questions": 2000, "ladder": ladder}
    return Lab(load_profile("smoke").model_copy(update=changes))


def write(folder: Path, models: Lab, train: int = 400, held_out: int = 200) -> None:
    """Write models (trained unless they are cached), pictures, questions and run file."""
    for rung, name in (("student", "student"), ("large", "teacher")):
        shutil.copytree(models.folder(rung), folder / name, dirs_exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    for split, name, count in (("train", "train", train), ("test", "eval", held_out)):
        rows = []
        for number, row in enumerate(load_task(models.profile.tasks[0], split, count)):
            picture = f"pictures/{name}-{number}.png"
            row["image"].save(folder / picture)
            rows.append({"image": picture, "question": row["question"], "answer": row["answer"]})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(RUN)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/trial.py FOLDER")
    write(Path(sys.argv[1]), lab())
