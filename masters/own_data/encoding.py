"""Rows of your own as model inputs: prompts are stored, pictures are processed whenever they are needed.

Processed pictures take about 24 MiB per megapixel, so they are not kept. A row may have several turns,
several pictures or none.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch

from masters.data.questions import OF_TEXT, Questions, Ragged, kind_of, processor_hash
from masters.own_data.pictures import open_picture, png
from masters.runtime.files import cache_dir, write_folder_once
from masters.runtime.keys import key_of
from masters.runtime.progress import report


class OwnPictures:
    """Pictures and conversations of encoded rows, see :class:`masters.data.questions.Pictures`.

    Args:
        rows: in the order of the encoded questions.
        processor: that encoded them.
        max_pixels: larger pictures are scaled down to this.
        folder: of the encoded questions.
    """

    def __init__(self, rows: datasets.Dataset, processor: Any, max_pixels: int | None, folder: Path) -> None:
        self.rows, self.processor, self.max_pixels, self.folder = rows, processor, max_pixels, folder

    def files(self, index: int) -> list[bytes]:
        """Return the pictures of a question as PNG files, in the order of their places."""
        return [png(open_picture(image, self.max_pixels)) for image in self.rows[index]["images"]]

    def conversation(self, index: int) -> list[dict[str, Any]]:
        """Return the messages of a question up to the answer, as typed parts."""
        messages: list[dict[str, Any]] = json.loads(self.rows[index]["messages"])
        return messages

    def features(self, index: int) -> dict[str, torch.Tensor]:
        """Return the processed pictures of a question; nothing if it has none."""
        return processed(self.processor, self.rows[index], self.max_pixels)[1]

    def kinds(self) -> np.ndarray:
        """Return the kind of each question's pictures."""
        kinds: np.ndarray = np.load(self.folder / "kinds.npy")
        return kinds


def processed(
    processor: Any, row: Mapping[str, Any], max_pixels: int | None
) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Return the prompt's token ids and the processed pictures of a row.

    Raises:
        ValueError: the processor refuses the row; the message names it.
    """
    pictures = [open_picture(image, max_pixels) for image in row["images"]]
    try:
        text = processor.apply_chat_template(json.loads(row["messages"]), add_generation_prompt=True)
        # Where the template writes the token that begins a text, the tokenizer must not write a second one.
        start = getattr(processor.tokenizer, "bos_token", None)
        options: dict[str, Any] = {}
        if start and text.startswith(start):
            options["add_special_tokens"] = False
        if pictures:
            options["images"] = [pictures]
        made = processor(text=[text], return_tensors="pt", **options)
    except Exception as error:  # templates and processors raise many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"the processor refuses {row['source']} row {row['row']}: {reason}") from error
    features = {name: made[name] for name in sorted(made.keys() - OF_TEXT)}
    return made["input_ids"][0].numpy().astype(np.int32), features


def encode(
    name: str, split: str, rows: datasets.Dataset, content: str, max_pixels: int | None, processor: Any
) -> Questions:
    """Return the encoded rows; encode them on first use.

    Args:
        name: their task.
        content: hash of the rows.
    """
    own = [name, content, max_pixels]
    key = key_of("questions", own=own, split=split, processor=processor_hash(processor))
    folder = cache_dir() / "questions" / f"{split}-{key}"
    write_folder_once(folder, partial(_encode, name, rows, max_pixels, processor))
    return Questions(folder, OwnPictures(rows, processor, max_pixels, folder))


def _encode(name: str, rows: datasets.Dataset, max_pixels: int | None, processor: Any, folder: Path) -> None:
    known: dict[tuple[Any, ...], int] = {}
    sets: dict[tuple[str, ...], int] = {}
    kinds, pictures, contents = [], [], []

    def prompts() -> Iterator[np.ndarray]:
        for index, row in enumerate(rows):
            prompt, features = processed(processor, row, max_pixels)
            kinds.append(known.setdefault(kind_of(features), len(known)))
            pictures.append(sets.setdefault(tuple(row["pixels"]), len(sets)))
            seen = json.dumps([row["pixels"], max_pixels]).encode()
            contents.append(hashlib.sha256(prompt.tobytes() + seen).hexdigest()[:16])
            report(f"encoding rows of {name}", index + 1, len(rows))
            yield prompt

    Ragged.write_each(folder, "prompts", prompts(), np.dtype(np.int32))
    np.save(folder / "kinds.npy", np.array(kinds, dtype=np.int64))
    frame = rows.select_columns(["id", "skill", "question", "answer"]).to_pandas()
    assert isinstance(frame, pd.DataFrame)
    frame = frame.assign(task=name, facts="", caption="", picture=pictures, content=contents)
    order = ["id", "task", "skill", "question", "answer", "facts", "caption", "picture", "content"]
    frame[order].to_parquet(folder / "table.parquet")
