"""Models and data of your own as tests have them: tiny untrained models, a file of questions, a run file."""

import json
from pathlib import Path
from typing import Any

import small
import yaml


def models(folder: Path) -> None:
    for seed, (name, width) in enumerate({"student": 16, "teacher": 24, "second": 32}.items()):
        model, processor = small.build(seed, width)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)


def rows(folder: Path, answers: bool = True, count: int = 12) -> None:
    """Questions about squares; each picture has pixels of its own."""
    made = []
    for index in range(count):
        name = list(small.COLOURS)[index % 4]
        image = small.picture(name)
        image.putpixel((0, 0), (index, 0, 0))
        image.save(folder / f"{index}.png")
        row = {"image": f"{index}.png", "question": "what colour is this square ?", "answer": name}
        made.append(row if answers else {k: v for k, v in row.items() if k != "answer"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def file(place: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "student": "student",
        "teachers": "teacher",
        "output_dir": "out",
        "data": {
            "train": "train.jsonl",
            "eval": {"split_from_train": 4},
            "columns": {"images": "image"},
        },
        "mask": {"r_max": 0.2, "step": 0.1},
        "responses": {"teacher": 2, "student": 2, "max_new_tokens": 6},
        "training": {"learning_rate": 1e-3, "batch": 2},
    }
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path
