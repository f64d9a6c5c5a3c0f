"""The question sets: images of 64 x 64 px with questions, short answers and supporting facts.

A set is built once, from installed packages and fixed seeds, and stored in the cache. Its folder name holds a
hash of the generating code and of its packages' versions, so changed code rebuilds the set. No image occurs
in two splits. :mod:`masters.data.labels` turns answers into training labels.
"""

import hashlib
import io
import re
from functools import partial
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from masters.data import charts, digits, easy_vqa, shapes
from masters.data.labels import vocabulary_of
from masters.data.scenes import SPLITS, Row, pixel_hash
from masters.runtime.files import cache_dir, write_atomic, write_folder_once
from masters.runtime.keys import hash_of

TASKS = ("easy-vqa", "digits", "charts", "shapes")

_BUILD = {"easy-vqa": easy_vqa.build, "digits": digits.build, "charts": charts.build, "shapes": shapes.build}
_READS = ("easy-vqa", "vega-datasets", "scikit-learn", "numpy", "pandas", "pillow", "datasets")
_COLUMNS = ("id", "image", "image_id", "question", "answer", "skill", "facts", "source", "caption")
_FEATURES = datasets.Features(
    {name: datasets.Image() if name == "image" else datasets.Value("string") for name in _COLUMNS}
)
_ORDER_SEED = 7
# Hashed at import, because a file may be edited while this code runs.
_CODE = {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(__file__).parent.glob("*.py")
}


def load_task(name: str, split: str, limit: int | None = None) -> datasets.Dataset:
    """Return a split of a question set; build the set on first use.

    The order is fixed and shuffled: first one question per image, then a second one per image, and so on. So
    the first ``limit`` rows cover as many images as possible and are a prefix of those of a larger limit.

    Args:
        name: one of ``TASKS``.
        split: train, validation or test.
        limit: maximum number of questions; default all.

    Returns:
        Columns id, image, image_id (shared by the questions of an image), question, answer, skill, facts (a
        short true statement that supports the answer), source (what the image was made from) and caption (a
        complete description of the image).

    Raises:
        ValueError: set or split are unknown, the limit is below 1, or the cached set is damaged.
    """
    if name not in TASKS:
        raise ValueError(f"no question set {name!r}; there are: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"question set {name} has no split {split!r}; there are: {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit for question set {name} is {limit}; give at least 1 question")
    folder = _folder(name)
    write_folder_once(folder, partial(_save, name))
    try:
        dataset = datasets.load_from_disk(str(folder / split))
    except (OSError, ValueError) as error:
        raise ValueError(f"question set {name} in {folder} is damaged; delete that folder") from error
    assert isinstance(dataset, datasets.Dataset)
    return dataset if limit is None or limit >= len(dataset) else dataset.select(range(limit))


def task_hash(name: str, split: str, limit: int | None = None) -> str:
    """Return 16 hexadecimal digits that hash the ids, texts and pixels of a split, in order.

    The hash is stored beside the set, because reading all images takes seconds. Errors are those of
    :func:`load_task`.
    """
    dataset = load_task(name, split, limit)
    kept = _folder(name) / f"{split}-{len(dataset)}.hash"
    if kept.is_file() and re.fullmatch("[0-9a-f]{16}", stored := kept.read_text(errors="replace")):
        return stored
    files = [image["bytes"] for image in dataset.cast_column("image", datasets.Image(decode=False))["image"]]
    pixels = {file: pixel_hash(Image.open(io.BytesIO(file))) for file in set(files)}
    texts = zip(
        *(dataset[column] for column in ("id", "question", "answer", "facts", "caption")), strict=True
    )
    content = hash_of([[*row, pixels[file]] for row, file in zip(texts, files, strict=True)])
    write_atomic(kept, content)
    return content


def vocabulary(names: tuple[str, ...] = TASKS) -> list[str]:
    """Return every word of the train and validation texts and labels of the sets, sorted."""
    words: set[str] = set()
    for name in names:
        for split in ("train", "validation"):
            words |= vocabulary_of(load_task(name, split))
    return sorted(words)


def _folder(name: str) -> Path:
    """Return the folder of a set, named by its code and the versions of the packages that it reads."""
    code = [_CODE[file] for file in (f"{name.replace('-', '_')}.py", "scenes.py", "tasks.py")]
    key = hash_of([name, code, {package: version(package) for package in _READS}])
    return cache_dir() / "tasks" / f"{name}-{key}"


def _in_order(rows: list[Row]) -> list[Row]:
    """Shuffle the rows, then put the first question of every image before all second ones, and so on."""
    shuffled = [rows[i] for i in np.random.default_rng(_ORDER_SEED).permutation(len(rows))]
    asked: dict[object, int] = {}
    turns = []
    for row in shuffled:
        turns.append(asked.get(row["image_id"], 0))
        asked[row["image_id"]] = turns[-1] + 1
    return [shuffled[i] for i in np.argsort(turns, kind="stable")]


def _save(name: str, folder: Path) -> None:
    """Build a set into a folder, without progress bars."""
    quiet = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        for split, rows in _BUILD[name]().items():
            columns = {column: [row[column] for row in _in_order(rows)] for column in _COLUMNS}
            datasets.Dataset.from_dict(columns, features=_FEATURES).save_to_disk(str(folder / split))
    finally:
        if not quiet:
            datasets.enable_progress_bars()
