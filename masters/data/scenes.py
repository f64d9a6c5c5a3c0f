"""What the generated sets share: a 64 x 64 picture of 16 px cells, and how a set of scenes is drawn.

One cell is one patch of the vision encoder, so a small model can, in principle, read every cell by itself. A
scene is a picture, where it comes from, and the questions about it; ``draw_splits`` draws scenes until each
split has its number of pictures and no picture, pixel for pixel, occurs twice in the set.
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

Colour = tuple[int, int, int]
COLORS: dict[str, Colour] = {
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
    """A picture, what it was made of, a description of all that it shows, and its questions."""

    image: Image.Image
    source: str
    caption: str
    questions: list[Question]


Row = dict[str, object]


def enumeration(words: Sequence[str]) -> str:
    """The words in a row: "a", "a and b", "a , b and c"."""
    return words[0] if len(words) == 1 else " , ".join(words[:-1]) + " and " + words[-1]


def canvas(background: Colour, line: Colour) -> Image.Image:
    """An empty picture whose cells are told apart by thin lines, so that "row 2 , column 3" can be seen."""
    image = Image.new("RGB", (SIZE, SIZE), background)
    pen = ImageDraw.Draw(image)
    for edge in range(CELL, SIZE, CELL):
        pen.line([(edge, 0), (edge, SIZE - 1)], fill=line)
        pen.line([(0, edge), (SIZE - 1, edge)], fill=line)
    return image


def grid_caption(things: Mapping[tuple[int, int], str]) -> str:
    """What every cell of the grid holds, row by row: "none" where there is nothing.

    Args:
        things: what is in the cell (row, column), both counted from 0.
    """
    return " , ".join(things.get((row, column), "none") for row in range(GRID) for column in range(GRID))


def png(image: Image.Image) -> bytes:
    """The picture as PNG; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of the size and the RGB pixels, whatever the file format was."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def rows_of(task: str, split: str, number: int, scene: Scene) -> list[Row]:
    """The rows of one scene, one a question; the scene's number and the question's index make the id."""
    image = {"bytes": png(scene.image), "path": None}
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
    pictures: Mapping[str, int] = PICTURES,
) -> dict[str, list[Row]]:
    """Draw scenes for every split until it has its number of pictures, all different from each other.

    Args:
        task: the set's name, which opens every id.
        seed: each split has its own stream, from this seed and the split's position.
        draw: makes a scene for a split, or None when what it tried has no unambiguous question.
        pictures: the number of pictures a split.
    """
    seen: set[str] = set()
    splits: dict[str, list[Row]] = {}
    for position, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, position])
        rows: list[Row] = []
        number = 0
        while number < pictures[split]:
            scene = draw(rng, split)
            if scene is None or (key := pixel_hash(scene.image)) in seen:
                continue
            seen.add(key)
            rows += rows_of(task, split, number, scene)
            number += 1
        splits[split] = rows
    return splits
