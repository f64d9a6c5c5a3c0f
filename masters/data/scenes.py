"""Scenes of the generated sets: 64 x 64 px images of 16 px cells, and the drawing of splits.

A cell is one patch of the vision encoder, so even a small model can read each cell. A scene is an image, its
source and its questions. ``draw_splits`` draws scenes until each split is complete; no two images of a set
have the same pixels.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

CELL = 16
GRID = 4
SIZE = CELL * GRID
SPLITS = ("train", "validation", "test")
PICTURES = {"train": 4000, "validation": 500, "test": 1500}

Color = tuple[int, int, int]
COLORS: dict[str, Color] = {
    "red": (214, 45, 48),
    "blue": (38, 92, 214),
    "green": (46, 160, 67),
    "yellow": (240, 190, 20),
    "purple": (150, 70, 190),
    "black": (32, 32, 38),
}


class Question(NamedTuple):
    """A question about a scene; ``facts`` is a short true statement that supports the answer."""

    question: str
    answer: str
    skill: str
    facts: str


class Scene(NamedTuple):
    """An image, its source, a complete description and its questions."""

    image: Image.Image
    source: str
    caption: str
    questions: list[Question]


Row = dict[str, object]


def enumeration(words: Sequence[str]) -> str:
    """Join words: "a", "a and b", "a , b and c"."""
    return words[0] if len(words) == 1 else " , ".join(words[:-1]) + " and " + words[-1]


def canvas(background: Color, line: Color) -> Image.Image:
    """Return an empty image with thin lines between the cells."""
    image = Image.new("RGB", (SIZE, SIZE), background)
    pen = ImageDraw.Draw(image)
    for edge in range(CELL, SIZE, CELL):
        pen.line([(edge, 0), (edge, SIZE - 1)], fill=line)
        pen.line([(0, edge), (SIZE - 1, edge)], fill=line)
    return image


def grid_caption(things: Mapping[tuple[int, int], str]) -> str:
    """Describe all cells row by row; ``things`` maps (row, column), from 0, to its content."""
    return " , ".join(things.get((row, column), "none") for row in range(GRID) for column in range(GRID))


def partition(seed: int | list[int], count: int, shares: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Shuffle the indices below ``count`` and divide them among the splits."""
    order = np.random.default_rng(seed).permutation(count)
    ends = np.cumsum([round(shares[split] * count) for split in SPLITS])[:-1]
    return dict(zip(SPLITS, np.split(order, ends), strict=True))


def pixel_hash(image: Image.Image) -> str:
    """Return the SHA-256 of the size and the RGB pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def rows_of(task: str, split: str, number: int, scene: Scene) -> list[Row]:
    """Return one row per question of a scene."""
    file = io.BytesIO()
    scene.image.save(file, format="PNG")
    image = {"bytes": file.getvalue(), "path": None}
    image_id = f"{task}/{split}/{number:06d}"
    return [
        {
            "id": f"{image_id}-{index}",
            "image": image,
            "image_id": image_id,
            **question._asdict(),
            "source": scene.source,
            "caption": scene.caption,
        }
        for index, question in enumerate(scene.questions)
    ]


def draw_splits(
    task: str,
    seed: int,
    draw: Callable[[np.random.Generator, str], Scene | None],
) -> dict[str, list[Row]]:
    """Draw different scenes until each split has its number of images.

    Args:
        task: name of the set, the start of every id.
        seed: each split draws from its own generator, seeded by this and the split's position.
        draw: returns a scene for a split, or None if the attempt has no unambiguous question.
    """
    seen: set[str] = set()
    splits: dict[str, list[Row]] = {}
    for position, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, position])
        rows: list[Row] = []
        number = 0
        while number < PICTURES[split]:
            scene = draw(rng, split)
            if scene is None or (key := pixel_hash(scene.image)) in seen:
                continue
            seen.add(key)
            rows += rows_of(task, split, number, scene)
            number += 1
        splits[split] = rows
    return splits
