"""Questions as models read them: tokenised, images processed once, kept on disk and mapped into memory.

A question becomes the token ids of its prompt (chat template applied, image tokens in place) and the
tensors of its picture. Both depend on the question set and on the processor alone, so they are made once
for a pair of the two and shared by every model, run and process that uses them.
"""

import hashlib
import io
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from PIL import Image

from masters.runtime.files import cache_dir, hash_of
from masters.data.tasks import REGISTERS, load_task, task_hash, with_labels

VERSION = 3
CHUNK = 256
FEW = 16  # numbers, at most, of a size or a grid
OF_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


class Ragged:
    """Arrays of different shapes in one file, read through a memory map.

    Args:
        folder: where ``<name>.npy`` (all arrays one behind the other), ``<name>.offsets.npy`` and, where they
            differ in more than their first dimension, ``<name>.shapes.npy`` are.
        name: of these files.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        # A plain array over the map: slicing a memmap costs several times as much.
        self.values = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
        self.offsets = np.load(folder / f"{name}.offsets.npy")
        shapes = folder / f"{name}.shapes.npy"
        self._shapes = np.load(shapes) if shapes.is_file() else None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        array = self.values[self.offsets[index] : self.offsets[index + 1]]
        return array if self._shapes is None else array.reshape(self._shapes[index])

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an array, without reading it."""
        if self._shapes is not None:
            return tuple(self._shapes[index].tolist())
        return (int(self.offsets[index + 1] - self.offsets[index]), *self.values.shape[1:])

    @staticmethod
    def write(folder: Path, name: str, arrays: Sequence[np.ndarray]) -> None:
        """Write arrays of one type that agree in the number of their dimensions."""
        if len({array.shape[1:] for array in arrays}) > 1:
            np.save(folder / f"{name}.shapes.npy", np.array([array.shape for array in arrays]))
            arrays = [array.reshape(-1) for array in arrays]
        np.save(folder / f"{name}.npy", np.concatenate(arrays))
        np.save(folder / f"{name}.offsets.npy", np.cumsum([0, *(len(array) for array in arrays)]))


def concatenate(images: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Processed pictures of several questions as one batch, along the first dimension.

    Where they differ in a further dimension (the number of tiles of a picture), the smaller ones are filled
    up with zeros: that is how the processors pad, and what the models leave out.
    """
    joined = {}
    for name in images[0] if images else ():
        tensors = [of_question[name] for of_question in images]
        if len({tensor.shape[1:] for tensor in tensors}) == 1:
            joined[name] = torch.cat(tensors)
            continue
        sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        whole = tensors[0].new_zeros(sum(map(len, tensors)), *sizes)
        start = 0
        for tensor in tensors:
            whole[(slice(start, start + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
            start += len(tensor)
        joined[name] = whole
    return joined


class Questions:
    """The questions of one or several tasks, ready for a model.

    Attributes:
        table: one row a question: id, task, skill, question, answer, facts, caption, picture (row among the
            images), content (a hash of the prompt's tokens and the picture: what a model sees).
        hash: of the content and of the processor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = pd.read_parquet(folder / "table.parquet")
        self.hash = folder.name
        self._prompts = Ragged(folder, "prompts")
        self._images = Ragged(folder, "images")
        features = sorted(p.name.removesuffix(".offsets.npy") for p in folder.glob("image.*.offsets.npy"))
        self._features = {name.removeprefix("image."): Ragged(folder, name) for name in features}
        self._picture = self.table["picture"].to_numpy()

    def __len__(self) -> int:
        return len(self.table)

    def __reduce__(self) -> tuple[type["Questions"], tuple[Path]]:
        return Questions, (self.folder,)  # another process maps the same files instead of getting a copy

    def prompt(self, index: int) -> np.ndarray:
        """Token ids of the prompt, image tokens included."""
        return self._prompts[index]

    def image_bytes(self, index: int) -> bytes:
        """The picture of a question as a file, in the format in which the question set has it."""
        content: bytes = self._images[int(self._picture[index])].tobytes()
        return content

    def image_features(self, indices: Iterable[int]) -> dict[str, torch.Tensor]:
        """What the processor made of the pictures of some questions, see :func:`concatenate`."""
        rows = [int(self._picture[index]) for index in indices]
        return concatenate(
            [{name: torch.tensor(ragged[row]) for name, ragged in self._features.items()} for row in rows]
        )

    def kinds(self) -> tuple[np.ndarray, list[int]]:
        """The kind of each question's picture, and the index of one question of each kind.

        The features of pictures of a kind have the same shapes, and the same values where they are but a few
        whole numbers (the size of a picture, its grid of patches).
        """
        known: dict[tuple[Any, ...], int] = {}
        of_picture = np.array(
            [
                known.setdefault(tuple(_kind(ragged, row) for ragged in self._features.values()), len(known))
                for row in range(int(self._picture.max(initial=-1)) + 1)
            ],
            dtype=np.int64,
        )
        kind = of_picture[self._picture]
        return kind, np.unique(kind, return_index=True)[1].tolist()

    def position(self) -> dict[str, int]:
        """From a question's id to its index."""
        return {id_: index for index, id_ in enumerate(self.table["id"])}


def _kind(ragged: Ragged, row: int) -> tuple[int, ...]:
    shape = ragged.shape(row)
    if ragged.values.dtype.kind in "iu" and math.prod(shape) <= FEW:
        return (*shape, *ragged[row].ravel().tolist())
    return shape


def processor_hash(processor: Any) -> str:
    """What of a processor determines prompts and images: tokenizer, chat template, image settings."""
    return hash_of(
        [
            processor.tokenizer.backend_tokenizer.to_str(),
            processor.chat_template,
            str(processor.image_processor.to_json_string()),
        ]
    )


def load_questions(tasks: Sequence[str], split: str, limit: int | None, processor: Any) -> Questions:
    """The questions of several tasks, encoded by a processor; made on first use, then mapped from disk.

    Args:
        tasks: names for :func:`masters.data.tasks.load_task`.
        split: ``train``, ``validation`` or ``test``.
        limit: questions a task, or None for all of them.
        processor: of the models that will read them.

    Raises:
        ValueError: no such task or split.
    """
    parts = [(task, load_task(task, split, limit)) for task in tasks]
    contents = [[task, task_hash(task, split, limit)] for task, _ in parts]
    key = hash_of([VERSION, contents, split, processor_hash(processor)])
    folder = cache_dir() / "questions" / f"{split}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            temporary = Path(tempfile.mkdtemp(dir=folder.parent))
            try:
                _encode(parts, processor, temporary)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return Questions(folder)


def training_labels(
    questions: Questions,
    tasks: Sequence[str],
    limit: int | None,
    wrong_share: float,
    seed: int,
    registers: tuple[str, ...] = REGISTERS,
) -> pd.DataFrame:
    """Training labels in one or more registers for encoded training questions, in the same order.

    Returns:
        Columns ``label``, ``register`` and ``core``, the answer that the label gives.
    """
    parts = [with_labels(load_task(task, "train", limit), registers, wrong_share, seed) for task in tasks]
    frame = pd.concat(
        [part.select_columns(["id", "label", "register", "core"]).to_pandas() for part in parts]
    )
    if list(frame["id"]) != list(questions.table["id"]):
        raise ValueError(
            "labels and questions are not of the same set; encode both with the same tasks and limit"
        )
    return frame.reset_index(drop=True)[["label", "register", "core"]]


def _encode(parts: list[tuple[str, datasets.Dataset]], processor: Any, folder: Path) -> None:
    tables: list[pd.DataFrame] = []
    prompts: list[np.ndarray] = []
    pictures: dict[str, list[np.ndarray]] = {}
    files: list[np.ndarray] = []
    row_of: dict[str, int] = {}
    digest: dict[str, bytes] = {}
    for task, part in parts:
        raw = part.cast_column("image", datasets.Image(decode=False))
        frame = raw.remove_columns("image").to_pandas()
        assert isinstance(frame, pd.DataFrame)
        for start in range(0, len(raw), CHUNK):
            chunk = raw[start : start + CHUNK]
            images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in chunk["image"]]
            texts = [prompt_text(processor, question) for question in chunk["question"]]
            # A list of pictures a prompt, because some processors take a flat list for one prompt's.
            encoded = processor(text=texts, images=[[image] for image in images])
            prompts.extend(np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"])
            new = {key: i for i, key in reversed(list(enumerate(chunk["image_id"]))) if key not in row_of}
            for key, i in sorted(new.items(), key=lambda item: item[1]):
                row_of[key] = len(row_of)
                files.append(np.frombuffer(chunk["image"][i]["bytes"], dtype=np.uint8))
                # Alone, because some processors lay the patches of several pictures one behind the other;
                # with its prompt, because some give their image processor other settings than its own.
                made = processor(text=[texts[i]], images=[[images[i]]], return_tensors="pt")
                of_image = {name: made[name].numpy() for name in sorted(made.keys() - OF_TEXT)}
                digest[key] = hashlib.sha256(
                    b"".join(array.tobytes() for array in of_image.values())
                ).digest()
                for name, array in of_image.items():
                    pictures.setdefault(name, []).append(array)
        frame.insert(1, "task", task)
        frame["content"] = [
            hashlib.sha256(prompt.tobytes() + digest[key]).hexdigest()[:16]
            for prompt, key in zip(prompts[-len(frame) :], frame["image_id"], strict=True)
        ]
        frame["picture"] = [row_of[key] for key in frame["image_id"]]
        tables.append(
            frame[["id", "task", "skill", "question", "answer", "facts", "caption", "picture", "content"]]
        )
    pd.concat(tables, ignore_index=True).to_parquet(folder / "table.parquet")
    Ragged.write(folder, "prompts", prompts)
    Ragged.write(folder, "images", files)
    for name, arrays in pictures.items():
        Ragged.write(folder, f"image.{name}", arrays)


def prompt_text(processor: Any, question: str) -> str:
    """A question and its picture through the chat template, up to where the response begins."""
    text: str = processor.apply_chat_template(messages(question), add_generation_prompt=True)
    return text


def messages(question: str) -> list[dict[str, Any]]:
    """A question as a conversation of one message, its picture behind it."""
    return [{"role": "user", "content": [{"type": "text", "text": question}, {"type": "image"}]}]
