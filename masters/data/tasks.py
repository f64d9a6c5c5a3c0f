"""The question sets: pictures of 64 x 64 px with questions, short answers, and the facts that support them.

A set is built once, from packages on disk and fixed seeds, and kept under the cache folder; the folder's name
carries a key over the generating code and the versions of what it reads, so that changed code never meets an
old set. No picture occurs in two splits. Training labels are made from the answers by
``masters.data.labels``.
"""

import hashlib
import io
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from masters.runtime.files import cache_dir, hash_of, write_atomic
from masters.data import charts, digits, easy_vqa, shapes
from masters.data.labels import CAPTION_PROMPT, REGISTERS, label_text, vocabulary_of, with_labels
from masters.data.scenes import SPLITS, Row, pixel_hash

__all__ = [
    "CAPTION_PROMPT",
    "REGISTERS",
    "SPLITS",
    "TASKS",
    "label_text",
    "load_task",
    "task_hash",
    "vocabulary",
    "with_labels",
]

TASKS = ("easy-vqa", "digits", "charts", "shapes")

_BUILD = {"easy-vqa": easy_vqa.build, "digits": digits.build, "charts": charts.build, "shapes": shapes.build}
_READS = ("easy-vqa", "vega-datasets", "scikit-learn", "numpy", "pandas", "pillow", "datasets")
_COLUMNS = ("id", "image", "image_id", "question", "answer", "skill", "facts", "source", "caption")
_FEATURES = datasets.Features(
    {name: datasets.Image() if name == "image" else datasets.Value("string") for name in _COLUMNS}
)
_ORDER_SEED = 7
# Hashed when imported: a file edited later is not the code that runs here.
_CODE = {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(__file__).parent.glob("*.py")
}


def load_task(name: str, split: str, limit: int | None = None) -> datasets.Dataset:
    """A split of a question set, built on first use.

    Rows come in one fixed shuffled order in which every picture has had its first question before any has its
    second, and so on; so the first ``limit`` rows spread over as many pictures as possible, and a smaller
    limit is a prefix of a larger one.

    Args:
        name: one of ``TASKS``.
        split: train, validation or test.
        limit: at most this many questions; all of them when None.

    Returns:
        Columns id, image, image_id (shared by the questions of a picture), question, answer, skill, facts (a
        short true statement that supports the answer), source (what the picture was made from) and caption
        (all that the picture shows, the same for all its questions).

    Raises:
        ValueError: an unknown set or split, a limit below 1, or a damaged cache; the message says what to do.
    """
    if name not in TASKS:
        raise ValueError(f"no question set {name!r}; there are: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"question set {name} has no split {split!r}; there are: {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit for question set {name} is {limit}; give at least 1 question")
    folder = _folder(name)
    if not folder.is_dir():
        _save(name, folder)
    try:
        dataset = datasets.load_from_disk(str(folder / split))
    except (OSError, ValueError) as error:
        raise ValueError(f"question set {name} in {folder} is damaged; delete that folder") from error
    assert isinstance(dataset, datasets.Dataset)
    return dataset if limit is None or limit >= len(dataset) else dataset.select(range(limit))


def task_hash(name: str, split: str, limit: int | None = None) -> str:
    """16 hexadecimal digits over the content of a split: ids, all texts and pixels, in order.

    It is kept beside the set, since reading every picture takes seconds.

    Raises:
        ValueError: as ``load_task``.
    """
    dataset = load_task(name, split, limit)
    kept = _folder(name) / f"{split}-{len(dataset)}.hash"
    if kept.is_file():
        return kept.read_text()
    files = [image["bytes"] for image in dataset.cast_column("image", datasets.Image(decode=False))["image"]]
    pixels = {file: pixel_hash(Image.open(io.BytesIO(file))) for file in set(files)}
    texts = zip(
        *(dataset[column] for column in ("id", "question", "answer", "facts", "caption")), strict=True
    )
    content = hash_of([[*row, pixels[file]] for row, file in zip(texts, files, strict=True)])
    write_atomic(kept, content)
    return content


def vocabulary(names: tuple[str, ...] = TASKS) -> list[str]:
    """Every word of the train and validation texts of some sets, sorted: questions, answers, all labels.

    Raises:
        ValueError: as ``load_task``.
    """
    words: set[str] = set()
    for name in names:
        for split in ("train", "validation"):
            words |= vocabulary_of(load_task(name, split))
    return sorted(words)


def _folder(name: str) -> Path:
    """Where a set is kept: the key covers the code that makes it and the versions of what that code reads."""
    code = [_CODE[file] for file in (f"{name.replace('-', '_')}.py", "scenes.py", "tasks.py")]
    key = hash_of([name, code, {package: version(package) for package in _READS}])
    return cache_dir() / "tasks" / f"{name}-{key}"


def _in_order(rows: list[Row]) -> list[Row]:
    """Shuffled, then all first questions of the pictures before all second ones, and so on."""
    shuffled = [rows[i] for i in np.random.default_rng(_ORDER_SEED).permutation(len(rows))]
    asked: dict[object, int] = {}
    turns = []
    for row in shuffled:
        turns.append(asked.get(row["image_id"], 0))
        asked[row["image_id"]] = turns[-1] + 1
    return [shuffled[i] for i in np.argsort(turns, kind="stable")]


def _save(name: str, folder: Path) -> None:
    """Build a set into a temporary folder and rename it; who comes second to the rename drops its own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    quiet = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        for split, rows in _BUILD[name]().items():
            columns = {column: [row[column] for row in _in_order(rows)] for column in _COLUMNS}
            datasets.Dataset.from_dict(columns, features=_FEATURES).save_to_disk(str(temporary / split))
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        if not quiet:
            datasets.enable_progress_bars()
        shutil.rmtree(temporary, ignore_errors=True)
