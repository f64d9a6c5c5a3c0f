"""Shapes: two to five colored shapes on a 4 x 4 grid, to count, name, find, relate and list.

Each shape stays within its cell, so "left of" compares columns and "above" compares rows. Every question has
a unique answer in its scene.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from masters.data.scenes import (
    CELL,
    COLORS,
    GRID,
    Question,
    Row,
    Scene,
    canvas,
    draw_splits,
    enumeration,
    grid_caption,
)

SEED = 30
KINDS = ("circle", "square", "triangle", "star")
QUESTIONS_PER_PICTURE = 4
T = TypeVar("T")
_FINE = 8  # shapes are drawn at this scale and reduced, for smooth edges


class Thing(NamedTuple):
    """A shape and its cell; rows and columns start at 1."""

    row: int
    column: int
    color: str
    kind: str

    @property
    def name(self) -> str:
        """Return color and kind, such as "red circle"."""
        return f"{self.color} {self.kind}"

    @property
    def place(self) -> str:
        """Return the cell in words, such as "row 2 , column 3"."""
        return f"row {self.row} , column {self.column}"


@lru_cache
def _stencil(kind: str, size: int) -> Image.Image:
    """Return the alpha mask of a shape, ``size`` px wide, centered in a cell."""
    mask = Image.new("L", (CELL * _FINE, CELL * _FINE))
    pen = ImageDraw.Draw(mask)
    center, radius = CELL * _FINE / 2, size * _FINE / 2
    box = (center - radius, center - radius, center + radius, center + radius)
    if kind == "circle":
        pen.ellipse(box, fill=255)
    elif kind == "square":
        inset = radius * 0.12
        pen.rectangle((box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset), fill=255)
    elif kind == "triangle":
        pen.polygon([(center, box[1]), (box[2], box[3]), (box[0], box[3])], fill=255)
    else:
        # Five points, with inner corners at 0.4 of the outer radius.
        reach = [radius * 1.08, radius * 0.43] * 5
        pen.polygon(
            [
                (center + r * math.sin(i * math.pi / 5), center - r * math.cos(i * math.pi / 5))
                for i, r in enumerate(reach)
            ],
            fill=255,
        )
    return mask.resize((CELL, CELL), Image.Resampling.BOX)


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _count(rng: np.random.Generator, things: list[Thing]) -> Question:
    draw = rng.random()
    if draw < 0.3:
        noun, counted = "shapes", things
    elif draw < 0.65:
        # Mostly something that is there; otherwise "0" would be the best guess.
        color = _pick(rng, [t.color for t in things]) if rng.random() < 0.8 else _pick(rng, list(COLORS))
        noun, counted = f"{color} shapes", [t for t in things if t.color == color]
    else:
        kind = _pick(rng, [t.kind for t in things]) if rng.random() < 0.8 else _pick(rng, KINDS)
        noun, counted = f"{kind}s", [t for t in things if t.kind == kind]
    rows = [str(sum(t.row == row for t in counted)) for row in range(1, GRID + 1)]
    facts = f"rows 1 to {GRID} hold {enumeration(rows)} {noun}"
    return Question(f"how many {noun} are there ?", str(len(counted)), "count", facts)


def _attribute(rng: np.random.Generator, things: list[Thing]) -> Question:
    thing = _pick(rng, things)
    facts = f"{thing.place} holds a {thing.name}"
    forms = [Question(f"what is in {thing.place} ?", thing.name, "attribute", facts)]
    if sum(t.kind == thing.kind for t in things) == 1:
        forms.append(Question(f"what color is the {thing.kind} ?", thing.color, "attribute", facts))
    if sum(t.color == thing.color for t in things) == 1:
        forms.append(Question(f"what shape is {thing.color} ?", thing.kind, "attribute", facts))
    return _pick(rng, forms)


def _existence(rng: np.random.Generator, things: list[Thing]) -> Question:
    names = {t.name for t in things}
    if rng.random() < 0.5:
        thing = _pick(rng, things)
        return Question(
            f"is there a {thing.name} ?", "yes", "existence", f"{thing.place} holds a {thing.name}"
        )
    # Half of the absent shapes combine a color and a kind that are both present.
    mixed = [f"{a.color} {b.kind}" for a in things for b in things if f"{a.color} {b.kind}" not in names]
    if mixed and rng.random() < 0.5:
        name = _pick(rng, mixed)
    else:
        name = _pick(rng, [n for color in COLORS for kind in KINDS if (n := f"{color} {kind}") not in names])
    color = name.split()[0]
    kinds = [kind for kind in KINDS if f"{color} {kind}" in names]
    if not kinds:
        facts = f"no shape is {color}"
    else:
        facts = f"{color} is only on " + enumeration([f"a {kind}" for kind in kinds])
    return Question(f"is there a {name} ?", "no", "existence", facts)


def _relation(rng: np.random.Generator, things: list[Thing]) -> Question | None:
    alone = [t for t in things if sum(o.name == t.name for o in things) == 1]
    pairs = [
        (a, b, axis)
        for a in alone
        for b in alone
        for axis in ("row", "column")
        if getattr(a, axis) < getattr(b, axis)
    ]
    if not pairs:
        return None
    before, after, axis = _pick(rng, pairs)
    first, second = (before, after) if rng.random() < 0.5 else (after, before)
    words = ("left of", "right of") if axis == "column" else ("above", "below")
    word, yes = (words[0], first is before) if rng.random() < 0.5 else (words[1], first is after)
    facts = (
        f"the {first.name} is in {axis} {getattr(first, axis)} "
        f"and the {second.name} in {axis} {getattr(second, axis)}"
    )
    return Question(
        f"is the {first.name} {word} the {second.name} ?", "yes" if yes else "no", "relation", facts
    )


def _list(rng: np.random.Generator, things: list[Thing]) -> Question | None:
    if len(things) > 3:
        return None
    ways = [
        (axis, words)
        for axis, words in (("column", "left to right"), ("row", "top to bottom"))
        if len({getattr(t, axis) for t in things}) == len(things)
    ]
    if not ways:
        return None
    axis, words = _pick(rng, ways)
    ordered = sorted(things, key=lambda t: int(getattr(t, axis)))
    parts = [f"{axis} {getattr(t, axis)} is {t.color}" for t in ordered]
    return Question(
        f"what are the colors from {words} ?",
        " , ".join(t.color for t in ordered),
        "list",
        enumeration(parts),
    )


def _draw(rng: np.random.Generator, split: str) -> Scene | None:
    how_many = int(rng.integers(2, 6))
    places = sorted(rng.choice(GRID * GRID, how_many, replace=False).tolist())
    things = [
        Thing(place // GRID + 1, place % GRID + 1, _pick(rng, list(COLORS)), _pick(rng, KINDS))
        for place in places
    ]
    asked = [
        _count(rng, things),
        _attribute(rng, things),
        _existence(rng, things),
        _relation(rng, things),
        _list(rng, things),
    ]
    questions = [question for question in asked if question is not None]
    if len(questions) < QUESTIONS_PER_PICTURE:
        return None
    while len(questions) > QUESTIONS_PER_PICTURE:
        # Keep the list question, which fewer scenes allow.
        questions.pop(int(rng.integers(len(questions) - 1)))
    image = canvas((250, 249, 245), (226, 225, 220))
    for thing in things:
        corner = ((thing.column - 1) * CELL, (thing.row - 1) * CELL)
        image.paste(COLORS[thing.color], corner, _stencil(thing.kind, int(rng.integers(11, 15))))
    source = "generated: " + "; ".join(f"{t.name} at row {t.row}, column {t.column}" for t in things)
    caption = grid_caption({(t.row - 1, t.column - 1): t.name for t in things})
    return Scene(image, source, caption, questions)


def build() -> dict[str, list[Row]]:
    """Return the rows of each split."""
    return draw_splits("shapes", SEED, _draw)
