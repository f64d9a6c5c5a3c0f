"""Rows of your own as model inputs: prompts are stored, pictures are processed whenever they are needed.

Processed pictures take about 24 MiB per megapixel, so they are not kept. A row may have several turns,
several pictures or none.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch

from masters.data.questions import OF_TEXT, Questions, Ragged, kind_of, processor_hash, text_options
from masters.own_data.pictures import PictureError, open_picture, png
from masters.runtime.errors import one_line
from masters.runtime.files import cache_dir, write_folder_once
from masters.runtime.keys import key_of
from masters.runtime.progress import report


class RefusedRow(ValueError):
    """A processor cannot read a row; the message names the row."""


class OwnPictures:
    """Pictures and conversations of encoded rows, see :class:`masters.data.questions.Pictures`.

    Args:
        rows: checked rows in the order of the encoded questions.
        processor: that encoded them.
        max_pixels: larger pictures are scaled down to this.
        folder: where the encoded questions are stored.
    """

    def __init__(self, rows: datasets.Dataset, processor: Any, max_pixels: int | None, folder: Path) -> None:
        self.rows, self.processor, self.max_pixels, self.folder = rows, processor, max_pixels, folder

    def files(self, index: int) -> list[bytes]:
        """Return the pictures of a question as PNG files, in the order of their places."""
        return [png(open_picture(image, self.max_pixels)) for image in self.rows[index]["images"]]

    def conversation(self, index: int) -> list[dict[str, Any]]:
        """Return the messages of a question up to the answer, as typed parts."""
        return json.loads(self.rows[index]["messages"])

    def features(self, index: int) -> dict[str, torch.Tensor]:
        """Return the processed pictures of a question; nothing if it has none."""
        return processed(self.processor, self.rows[index], self.max_pixels)[1]

    def kinds(self) -> np.ndarray:
        """Return the kind of each question's pictures."""
        return np.load(self.folder / "kinds.npy")


def processed(
    processor: Any, row: Mapping[str, Any], max_pixels: int | None
) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Return the prompt's token ids and the processed pictures of a row.

    Raises:
        RefusedRow: the processor cannot read the row.
        ValueError: a picture has changed since it was checked.
    """
    place = f"{row['source']} row {row['row']}"
    try:
        pictures = [open_picture(image, max_pixels) for image in row["images"]]
    except PictureError as error:
        raise ValueError(f"{place}: {error}") from None
    try:
        text = processor.apply_chat_template(json.loads(row["messages"]), add_generation_prompt=True)
        options: dict[str, Any] = text_options(processor, text)
        if pictures:
            options["images"] = [pictures]
        made = processor(text=[text], return_tensors="pt", **options)
    except Exception as error:  # templates and processors raise many types
        raise RefusedRow(f"the processor refuses {place}: {one_line(error)}") from error
    prompt = made["input_ids"][0].numpy().astype(np.int32)
    if not pictures and (prompt == getattr(processor, "image_token_id", None)).any():
        raise RefusedRow(f"{place} has no picture, and its text holds the image token")
    return prompt, {name: made[name] for name in sorted(made.keys() - OF_TEXT)}


def encode(
    name: str,
    split: str,
    rows: datasets.Dataset,
    content: str,
    max_pixels: int | None,
    processor: Any,
    skip: bool,
) -> Questions:
    """Return the encoded rows; encode them on first use.

    Args:
        name: their task.
        content: hash of the rows.
        skip: leave out rows that the processor refuses, with a warning; otherwise they are an error.
    """
    own = [name, content, max_pixels]
    key = key_of("questions", own=own, split=split, processor=processor_hash(processor))
    folder = cache_dir() / "questions" / f"{split}-{key}"
    write_folder_once(folder, partial(_encode, name, rows, max_pixels, processor))
    refused = pd.read_parquet(folder / "refused.parquet")
    if len(refused):
        first = refused["reason"].iloc[0]
        if not skip or len(refused) == len(rows):
            raise ValueError(first)
        warnings.warn(f"{len(refused)} of {len(rows)} rows of {split} are left out: {first}", stacklevel=3)
        rows = rows.select(np.setdiff1d(np.arange(len(rows)), refused["place"]))
    return Questions(folder, OwnPictures(rows, processor, max_pixels, folder))


def _encode(name: str, rows: datasets.Dataset, max_pixels: int | None, processor: Any, folder: Path) -> None:
    known: dict[tuple[Any, ...], int] = {}
    sets: dict[tuple[str, ...], int] = {}
    kinds, pictures, contents = [], [], []
    refused: list[tuple[int, str]] = []

    with Ragged.writing(folder, "prompts", np.dtype(np.int32)) as add:
        for place, row in enumerate(rows):
            report(f"encoding rows of {name}", place + 1, len(rows))
            try:
                prompt, features = processed(processor, row, max_pixels)
            except RefusedRow as error:
                refused.append((place, str(error)))
                continue
            kinds.append(known.setdefault(kind_of(features), len(known)))
            pictures.append(sets.setdefault(tuple(row["pixels"]), len(sets)))
            seen = json.dumps([row["pixels"], max_pixels]).encode()
            contents.append(hashlib.sha256(prompt.tobytes() + seen).hexdigest()[:16])
            add(prompt)
    np.save(folder / "kinds.npy", np.array(kinds, dtype=np.int64))
    left_out = pd.DataFrame(refused, columns=["place", "reason"]).astype({"place": "int64"})
    left_out.to_parquet(folder / "refused.parquet")
    frame = rows.select_columns(["id", "skill", "question", "answer"]).to_pandas()
    assert isinstance(frame, pd.DataFrame)
    frame = frame.drop(index=list(left_out["place"])).assign(task=name, facts="", caption="")
    frame = frame.assign(picture=pictures, content=contents).reset_index(drop=True)
    order = ["id", "task", "skill", "question", "answer", "facts", "caption", "picture", "content"]
    frame[order].to_parquet(folder / "table.parquet")
