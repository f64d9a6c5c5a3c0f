"""Make a folder to try `masters distill` on: two small trained models, pictures, questions and a run file.

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
training: {learning_rate: 1.0e-3, lr_schedule: linear, epochs: 4, batch: 16}
loss: {policy_weight: 0.1}
"""


def main(folder: Path) -> None:
    """Train the models, unless they are cached, and write the folder."""
    common = {"layers": 1, "caption_steps": 300, "batch": 16, "learning_rate": 3e-3}
    ladder = {
        "student": ModelSpec(width=24, steps=800, **common),
        "large": ModelSpec(width=64, steps=2500, **common),
    }
    profile = load_profile("smoke").model_copy(
        update={"tasks": ("shapes",), "train_questions": 2000, "ladder": ladder}
    )
    lab = Lab(profile)
    for rung, name in (("student", "student"), ("large", "teacher")):
        shutil.copytree(lab.folder(rung), folder / name, dirs_exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    for split, count in (("train", 400), ("test", 200)):
        rows = []
        for number, row in enumerate(load_task("shapes", split, count)):
            picture = f"pictures/{split}-{number}.png"
            row["image"].save(folder / picture)
            rows.append({"image": picture, "question": row["question"], "answer": row["answer"]})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{'eval' if split == 'test' else split}.jsonl").write_text(text)
    (folder / "run.yaml").write_text(RUN)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/trial.py FOLDER")
    main(Path(sys.argv[1]))
