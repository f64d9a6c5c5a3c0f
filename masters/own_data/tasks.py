"""The question sets of a profile: built-in ones by name and data of your own, together.

A profile reads three splits. Of data of your own these are train, eval (called validation) and test, so it
needs all three. A limit takes rows in a fixed shuffled order.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from masters.data.labels import accepted, with_labels
from masters.data.questions import Questions, joined, load_questions
from masters.data.tasks import load_task, vocabulary
from masters.own_data.question_set import OwnQuestions, encode_own, load_own_data, some_rows
from masters.settings import OwnData, Task

_SPLITS = {"train": "train", "validation": "eval", "test": "test"}


def words_of(tasks: Sequence[Task], base: Path) -> list[str]:
    """Return every word of the tasks, sorted, for models trained from scratch; see :func:`questions_of`."""
    words = set(vocabulary(tuple(task for task in tasks if isinstance(task, str))))
    for task in tasks:
        if isinstance(task, OwnData):
            for split in ("train", "validation"):
                rows = rows_of(task, split, None, base)[1]
                texts = [answer for label in rows["answer"] for answer in accepted(label)]
                for messages in rows["messages"]:
                    parts = (part for turn in json.loads(messages) for part in turn["content"])
                    texts += [part["text"] for part in parts if part["type"] == "text"]
                words |= {word for text in texts for word in text.lower().split()}
    return sorted(words)


def questions_of(
    tasks: Sequence[Task], split: str, limit: int | None, processor: Any, base: Path
) -> Questions:
    """Return the encoded questions of several tasks; encode them on first use.

    Args:
        split: ``train``, ``validation`` or ``test``.
        limit: questions per task; None for all.
        base: folder that paths of data of your own start from.

    Raises:
        ValueError: a task or the split does not exist, or has no usable question.
    """
    names = [task for task in tasks if isinstance(task, str)]
    if len(names) == len(tasks):
        return load_questions(names, split, limit, processor)
    parts = []
    for task in tasks:
        if isinstance(task, str):
            parts.append(load_questions([task], split, limit, processor))
            continue
        parts.append(encode_own(*_split_of(task, split, base), processor, limit))
    return joined(parts)


def labels_of(
    questions: Questions,
    tasks: Sequence[Task],
    limit: int | None,
    wrong_share: float,
    seed: int,
    registers: tuple[str, ...],
) -> pd.DataFrame:
    """Return the columns ``label``, ``register`` and ``core`` of encoded training questions, in order.

    Questions of the built-in sets get labels in several registers, see
    :func:`masters.data.labels.with_labels`; those of your own get their first accepted answer.
    """
    frames = []
    start = 0
    for task in tasks:
        name = task if isinstance(task, str) else task.name
        table = questions.table[questions.table["task"] == name]
        if isinstance(task, str):
            part = with_labels(load_task(task, "train", limit), registers, wrong_share, seed)
        else:
            columns = {column: list(table[column]) for column in ("id", "question", "skill", "facts")}
            columns["answer"] = [(accepted(label) or ("",))[0] for label in table["answer"]]
            part = with_labels(datasets.Dataset.from_dict(columns), ("bare",), wrong_share, seed)
            part = part.remove_columns("label").add_column("label", list(part["core"]))
        frame = part.select_columns(["id", "label", "register", "core"]).to_pandas()
        if list(frame["id"]) != list(questions.table["id"][start : start + len(frame)]):
            raise ValueError(f"labels and questions of {name} are not of the same set; use the same limit")
        frames.append(frame)
        start += len(frame)
    return pd.concat(frames, ignore_index=True)[["label", "register", "core"]]


def rows_of(task: OwnData, split: str, limit: int | None, base: Path) -> tuple[str, datasets.Dataset]:
    """Return hash and rows of a split of data of your own: ``train``, ``validation`` or ``test``."""
    return some_rows(*_split_of(task, split, base), limit)


def _split_of(task: OwnData, split: str, base: Path) -> tuple[OwnQuestions, str]:
    """Return data of your own and its name of a split; ``ValueError`` if it has none."""
    own, part = load_own_data(task, base), _SPLITS[split]
    if part not in own.splits:
        raise ValueError(f"data {own.name} of the profile needs {part}: a file or {{split_from_train: N}}")
    return own, part
