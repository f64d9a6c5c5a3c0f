"""Digits: one to four handwritten digits on a 4 x 4 grid, to read, compare, add and count.

The digits are scikit-learn's 8 x 8 scans, drawn at twice their size. The scans are split before images are
drawn, so no scan of a test image occurs in training.
"""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from masters.data.scenes import (
    CELL,
    GRID,
    Color,
    Question,
    Row,
    Scene,
    canvas,
    draw_splits,
    enumeration,
    grid_caption,
    partition,
)

SEED = 20
SCAN_SHARES = {"train": 0.65, "validation": 0.10, "test": 0.25}
# (paper, lines, ink): dark on light and light on dark.
PAPERS: tuple[tuple[Color, Color, Color], ...] = (
    ((250, 248, 242), (222, 220, 212), (30, 34, 60)),
    ((30, 34, 48), (56, 62, 80), (250, 244, 220)),
)


def _questions(rng: np.random.Generator, cells: list[tuple[int, int]], values: list[int]) -> list[Question]:
    """Ask one question per skill; ``values`` and their ``cells`` (row, column) are in reading order."""
    chosen = int(rng.integers(len(values)))
    row, column = cells[chosen][0] + 1, cells[chosen][1] + 1
    place = f"row {row} , column {column}"
    read = Question(
        f"which digit is in {place} ?",
        str(values[chosen]),
        "read",
        f"{place} holds the digit {values[chosen]}",
    )
    shown = "the digits are " + enumeration([str(value) for value in values])
    if len(values) == 1:
        only, other = values[0], int(rng.integers(10))
        # Thresholds are equally often below the digit and not below it, as far as 0 to 9 allow.
        limit = int(rng.integers(only, 10)) if (only == 0 or rng.random() < 0.5) else int(rng.integers(only))
        compare = Question(
            f"is the digit larger than {limit} ?",
            "yes" if only > limit else "no",
            "compare",
            f"the digit is {only}",
        )
        add = Question(
            f"what is the digit plus {other} ?",
            str(only + other),
            "add",
            f"the digit is {only} and {only} plus {other} is {only + other}",
        )
        count_facts = f"the only digit is in {place}"
    else:
        largest, smallest = max(values), min(values)
        if rng.random() < 0.5:
            compare = Question("what is the largest digit ?", str(largest), "compare", shown)
        else:
            compare = Question("what is the smallest digit ?", str(smallest), "compare", shown)
        total = sum(values)
        if len(values) == 2 or (total <= 20 and rng.random() < 0.5):
            add = Question(
                "what is the sum of the digits ?",
                str(total),
                "add",
                " plus ".join(map(str, values)) + f" is {total}",
            )
        else:
            pair = largest + smallest
            add = Question(
                "what is the sum of the largest and the smallest digit ?",
                str(pair),
                "add",
                f"{largest} is the largest and {smallest} the smallest , {largest} plus {smallest} is {pair}",
            )
        count_facts = shown
    count = Question("how many digits are there ?", str(len(values)), "count", count_facts)
    return [read, compare, add, count]


def _ink(scan: np.ndarray) -> np.ndarray:
    """Convert a scan ``(8, 8)`` of 0 to 16 to the fraction of ink per pixel, ``(16, 16, 1)``."""
    small = Image.fromarray((scan * 255 / 16).astype(np.uint8))
    return np.asarray(small.resize((CELL, CELL), Image.Resampling.BICUBIC), dtype=np.float64)[..., None] / 255


def build() -> dict[str, list[Row]]:
    """Return the rows of each split."""
    scans = load_digits()
    ink = [_ink(scan) for scan in scans.images]
    owned = partition(SEED, len(scans.target), SCAN_SHARES)

    def draw(rng: np.random.Generator, split: str) -> Scene:
        paper, line, pen = PAPERS[int(rng.integers(len(PAPERS)))]
        how_many = int(rng.integers(1, 5))
        places = sorted(rng.choice(GRID * GRID, how_many, replace=False).tolist())
        chosen = [int(i) for i in rng.choice(owned[split], how_many, replace=False)]
        pixels = np.asarray(canvas(paper, line), dtype=np.float64)
        cells = [divmod(place, GRID) for place in places]
        for (row, column), index in zip(cells, chosen, strict=True):
            window = np.s_[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            pixels[window] += ink[index] * (np.array(pen) - pixels[window])
        source = "scikit-learn digits: " + "; ".join(
            f"{index} at row {row + 1}, column {column + 1}"
            for (row, column), index in zip(cells, chosen, strict=True)
        )
        values = [int(scans.target[index]) for index in chosen]
        image = Image.fromarray(pixels.round().astype(np.uint8))
        caption = grid_caption({cell: str(value) for cell, value in zip(cells, values, strict=True)})
        return Scene(image, source, caption, _questions(rng, cells, values))

    return draw_splits("digits", SEED, draw)
