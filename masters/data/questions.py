"""Questions encoded for a model: tokenized prompts and processed images.

A question becomes the token ids of its prompt (chat template applied, image tokens included) and the tensors
of its images. Both depend only on question set and processor, so each such pair is encoded once and shared by
all models, runs and processes. The images of the built-in sets are small, so their tensors are stored, too,
and mapped from disk; those of other sets (:mod:`masters.own_data.encoding`) are made when they are needed.
"""

import hashlib
import io
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import pandas as pd
import torch
from PIL import Image

from masters.data.labels import accepted
from masters.data.tasks import load_task, task_hash
from masters.runtime.files import cache_dir, write_folder_once
from masters.runtime.keys import hash_of, key_of

FEW = 16  # maximum number of entries of a size or a grid
OF_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


class Ragged:
    """Arrays of different shapes in one memory-mapped file.

    Args:
        folder: holds ``<name>.npy`` (the concatenated arrays), ``<name>.offsets.npy`` and, if more than the
            first dimension differs, ``<name>.shapes.npy``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        # A plain array over the map, because slicing a memmap is several times slower.
        self.values = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
        self.offsets = np.asarray(np.load(folder / f"{name}.offsets.npy", mmap_mode="r"))
        shapes = folder / f"{name}.shapes.npy"
        self._shapes = np.load(shapes) if shapes.is_file() else None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        array = self.values[self.offsets[index] : self.offsets[index + 1]]
        return array if self._shapes is None else array.reshape(self._shapes[index])

    @staticmethod
    def write(folder: Path, name: str, arrays: Sequence[np.ndarray]) -> None:
        """Write arrays of the same type and number of dimensions."""
        if len({array.shape[1:] for array in arrays}) > 1:
            np.save(folder / f"{name}.shapes.npy", np.array([array.shape for array in arrays]))
            arrays = [array.reshape(-1) for array in arrays]
        np.save(folder / f"{name}.npy", np.concatenate(arrays))
        np.save(folder / f"{name}.offsets.npy", np.cumsum([0, *(len(array) for array in arrays)]))

    @staticmethod
    @contextmanager
    def writing(folder: Path, name: str, kind: np.dtype) -> Iterator[Callable[[np.ndarray], None]]:
        """Yield a function that adds an array of one dimension; none of them stays in memory."""
        offsets, values, target = array("q", [0]), folder / f"{name}.values", folder / f"{name}.npy"
        with open(values, "wb") as file:

            def add(one: np.ndarray) -> None:
                file.write(one.astype(kind).tobytes())
                offsets.append(offsets[-1] + len(one))

            yield add
        about = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (offsets[-1],)}
        with open(target, "wb") as file, open(values, "rb") as written:
            np.lib.format.write_array_header_1_0(file, about)
            shutil.copyfileobj(written, file)
        os.remove(values)
        np.save(folder / f"{name}.offsets.npy", np.frombuffer(offsets, np.int64))


def concatenate(images: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Concatenate the processed images of several questions along the first dimension.

    If another dimension differs (the number of tiles per image), smaller tensors are padded with zeros, as
    the processors do; models ignore the padding. Questions without images have no tensors and are left out.
    """
    joined = {}
    images = [of_question for of_question in images if of_question]
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


class Pictures(Protocol):
    """The images of encoded questions, by the index of the question."""

    def files(self, index: int) -> list[bytes]:
        """Return the image files, in the order in which the prompt shows them."""

    def conversation(self, index: int) -> list[dict[str, Any]]:
        """Return the messages up to the answer, as parts of type text and image."""

    def features(self, index: int) -> Mapping[str, torch.Tensor]:
        """Return the processed images; nothing for a question without any."""

    def kinds(self) -> np.ndarray:
        """Return the kind of each question's images, see :meth:`Questions.kinds`."""


class Questions:
    """Encoded questions of one or several tasks.

    Args:
        folder: holds the table and the prompts.
        pictures: the images; default: one per question, stored in the folder.

    Attributes:
        table: one row per question: id, task, skill, question, answer (a label, see
            :func:`masters.data.labels.accepted`), facts, caption, picture (questions with the same
            images have the same number), content (hash of the model's input: prompt tokens and images).
        hash: hash of the content and the processor.
    """

    def __init__(self, folder: Path, pictures: Pictures | None = None) -> None:
        self.folder = folder
        self.table = pd.read_parquet(folder / "table.parquet")
        self.hash = folder.name
        self._prompts = Ragged(folder, "prompts")
        self._given = pictures
        self._pictures: Pictures = pictures or _Stored(folder, self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __reduce__(self) -> tuple[type["Questions"], tuple[Path, Pictures | None]]:
        return Questions, (self.folder, self._given)  # other processes map the same files

    def prompt(self, index: int) -> np.ndarray:
        """Return the token ids of the prompt, including image tokens."""
        return self._prompts[index]

    def images(self, index: int) -> list[bytes]:
        """Return the image files of a question, in the order in which the prompt shows them."""
        return self._pictures.files(index)

    def conversation(self, index: int) -> list[dict[str, Any]]:
        """Return the messages of a question up to the answer, as parts of type text and image."""
        return self._pictures.conversation(index)

    def image_features(self, indices: Iterable[int]) -> dict[str, torch.Tensor]:
        """Return the processed images of the questions, see :func:`concatenate`."""
        return concatenate([self._pictures.features(index) for index in indices])

    def kinds(self) -> tuple[np.ndarray, list[int]]:
        """Return the kind of each question's images, and the index of one question per kind.

        Images of a kind have features of the same shapes; features of a few integers (image size, grid of
        patches) also have the same values.
        """
        kind = self._pictures.kinds()
        return kind, np.unique(kind, return_index=True)[1].tolist()

    def pictures(self, index: int) -> list[Image.Image]:
        """Return a question's images in RGB, in the order of their places."""
        return [Image.open(io.BytesIO(file)).convert("RGB") for file in self.images(index)]

    def samples(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Return questions to show: ``question``, ``answer`` and the first ``image``; those with an image."""
        shown = []
        for index in indices:
            about = self.table.iloc[index]
            if pictures := self.pictures(index):
                answer = " | ".join(accepted(about["answer"]))
                shown.append({"image": pictures[0], "question": about["question"], "answer": answer})
        return shown

    def position(self) -> dict[str, int]:
        """Map each question's id to its index."""
        return {id_: index for index, id_ in enumerate(self.table["id"])}


def joined(parts: Sequence[Questions]) -> Questions:
    """Return several sets of questions as one, in order. Only table and prompts are stored again."""
    folder = cache_dir() / "questions" / f"joined-{hash_of([part.hash for part in parts])}"

    def save(target: Path) -> None:
        tables, start = [], 0
        for part in parts:
            tables.append(part.table.assign(picture=part.table["picture"] + start))
            start += int(part.table["picture"].max()) + 1
        pd.concat(tables, ignore_index=True).to_parquet(target / "table.parquet")
        with Ragged.writing(target, "prompts", np.dtype(np.int32)) as add:
            for part in parts:
                for index in range(len(part)):
                    add(part.prompt(index))

    write_folder_once(folder, save)
    return Questions(folder, _Joined(parts))


class _Joined:
    """The images of several sets of questions."""

    def __init__(self, parts: Sequence[Questions]) -> None:
        self._parts, self._starts = list(parts), np.cumsum([0, *map(len, parts)])

    def _at(self, index: int) -> tuple[Questions, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part], index - int(self._starts[part])

    def files(self, index: int) -> list[bytes]:
        part, place = self._at(index)
        return part.images(place)

    def conversation(self, index: int) -> list[dict[str, Any]]:
        part, place = self._at(index)
        return part.conversation(place)

    def features(self, index: int) -> Mapping[str, torch.Tensor]:
        part, place = self._at(index)
        return part.image_features([place])

    def kinds(self) -> np.ndarray:
        kinds, start = [], 0
        for part in self._parts:
            kinds.append(part.kinds()[0] + start)
            start = int(kinds[-1].max()) + 1
        return np.concatenate(kinds)


class _Stored:
    """One image per question, with its tensors, mapped from disk."""

    def __init__(self, folder: Path, table: pd.DataFrame) -> None:
        self._table, self._picture = table, table["picture"].to_numpy()
        self._files = Ragged(folder, "images")
        features = sorted(p.name.removesuffix(".offsets.npy") for p in folder.glob("image.*.offsets.npy"))
        self._features = {name.removeprefix("image."): Ragged(folder, name) for name in features}

    def files(self, index: int) -> list[bytes]:
        return [self._files[int(self._picture[index])].tobytes()]

    def conversation(self, index: int) -> list[dict[str, Any]]:
        return messages(self._table["question"].iloc[index])

    def features(self, index: int) -> Mapping[str, torch.Tensor]:
        row = int(self._picture[index])
        return {name: torch.tensor(ragged[row]) for name, ragged in self._features.items()}

    def kinds(self) -> np.ndarray:
        known: dict[tuple[Any, ...], int] = {}
        rows = range(int(self._picture.max(initial=-1)) + 1)
        of_picture = [
            known.setdefault(kind_of({name: of[row] for name, of in self._features.items()}), len(known))
            for row in rows
        ]
        return np.array(of_picture, dtype=np.int64)[self._picture]


def kind_of(features: Mapping[str, torch.Tensor | np.ndarray]) -> tuple[Any, ...]:
    """Return what images of a kind have in common, see :meth:`Questions.kinds`."""
    arrays = {name: np.asarray(features[name]) for name in sorted(features)}
    few = {name: array.dtype.kind in "iu" and array.size <= FEW for name, array in arrays.items()}
    return tuple(
        (name, *array.shape, *(array.ravel().tolist() if few[name] else ())) for name, array in arrays.items()
    )


def processor_hash(processor: Any) -> str:
    """Hash what determines prompts and images: tokenizer, chat template and image settings."""
    return hash_of(
        [
            processor.tokenizer.backend_tokenizer.to_str(),
            processor.chat_template,
            str(processor.image_processor.to_json_string()),
        ]
    )


def load_questions(tasks: Sequence[str], split: str, limit: int | None, processor: Any) -> Questions:
    """Return the encoded questions of several tasks; encode them on first use.

    Args:
        split: ``train``, ``validation`` or ``test``.
        limit: questions per task; None for all.

    Raises:
        ValueError: a task or the split does not exist.
    """
    parts = [(task, load_task(task, split, limit)) for task in tasks]
    contents = [[task, task_hash(task, split, limit)] for task, _ in parts]
    begun = text_options(processor, prompt_text(processor, "what ?")) or None
    key = key_of("questions", tasks=contents, split=split, processor=processor_hash(processor), begun=begun)
    folder = cache_dir() / "questions" / f"{split}-{key}"
    write_folder_once(folder, partial(_encode, parts, processor))
    return Questions(folder)


def _encode(parts: list[tuple[str, datasets.Dataset]], processor: Any, folder: Path) -> None:
    tables: list[pd.DataFrame] = []
    prompts: list[np.ndarray] = []
    pictures: dict[str, list[np.ndarray]] = {}
    files: list[np.ndarray] = []
    row_of: dict[tuple[str, str, bytes], int] = {}
    digests: list[bytes] = []
    # A picture's size alone decides how many image tokens a prompt has.
    known: dict[tuple[str, tuple[int, int]], np.ndarray] = {}
    for task, part in parts:
        raw = part.cast_column("image", datasets.Image(decode=False))
        frame = raw.remove_columns("image").to_pandas()
        assert isinstance(frame, pd.DataFrame)
        rows, contents = [], []
        for row in raw.select_columns(["image", "image_id", "question"]):
            file, question = row["image"]["bytes"], row["question"]
            # The id alone may be that of another image in another task.
            key = task, row["image_id"], hashlib.sha256(file).digest()
            image = Image.open(io.BytesIO(file))
            asked = question, image.size
            if key not in row_of or asked not in known:
                text = prompt_text(processor, question)
                # One image at a time, because some processors concatenate the patches of several images; with
                # its prompt, because some override the settings of their image processor.
                options = text_options(processor, text)
                images = [[image.convert("RGB")]]
                made = processor(text=[text], images=images, return_tensors="pt", **options)
                known[asked] = made["input_ids"][0].numpy().astype(np.int32)
            if key not in row_of:
                row_of[key] = len(row_of)
                files.append(np.frombuffer(file, dtype=np.uint8))
                seen = hashlib.sha256()
                for name in sorted(made.keys() - OF_TEXT):
                    array = made[name].numpy()
                    seen.update(array.tobytes())
                    pictures.setdefault(name, []).append(array)
                digests.append(seen.digest())
            rows.append(row_of[key])
            prompts.append(known[asked])
            contents.append(hashlib.sha256(known[asked].tobytes() + digests[rows[-1]]).hexdigest()[:16])
        frame = frame.assign(task=task, content=contents, picture=rows)
        tables.append(
            frame[["id", "task", "skill", "question", "answer", "facts", "caption", "picture", "content"]]
        )
    pd.concat(tables, ignore_index=True).to_parquet(folder / "table.parquet")
    Ragged.write(folder, "prompts", prompts)
    Ragged.write(folder, "images", files)
    for name, arrays in pictures.items():
        Ragged.write(folder, f"image.{name}", arrays)


def prompt_text(processor: Any, question: str) -> str:
    """Apply the chat template to a question with an image, up to the start of the response."""
    return processor.apply_chat_template(messages(question), add_generation_prompt=True)


def text_options(processor: Any, text: str) -> dict[str, bool]:
    """Return what keeps the tokenizer from beginning a text again that its template has begun."""
    start = getattr(processor.tokenizer, "bos_token", None)
    return {"add_special_tokens": False} if start and text.startswith(start) else {}


def messages(question: str) -> list[dict[str, Any]]:
    """Return a question, followed by its image, as a conversation of one message."""
    return [{"role": "user", "content": [{"type": "text", "text": question}, {"type": "image"}]}]
