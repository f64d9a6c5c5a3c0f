"""Charts: bar charts of three or four rows of a real table, to read, compare and subtract.

The tables come from the package ``vega_datasets``. Their rows are split before charts are drawn, so no row of
a test chart occurs in training. Each bar has its own color. Heights are rescaled to integers from 1 to 9; a
thin line per unit and a darker one at 5 make the values readable.
"""

from functools import cache

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from vega_datasets import local_data

from masters.data.scenes import CELL, COLORS, GRID, SIZE, Question, Row, Scene, draw_splits, partition

SEED = 40
UNIT = 6  # px per unit
BASE = 60  # px from the top to the axis
HIGHEST = 9
ROW_SHARES = {"train": 0.70, "validation": 0.10, "test": 0.20}
# Table: (columns that name a row, columns that are charted).
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "barley": (("variety", "site", "year"), ("yield",)),
    "cars": (("Name", "Year"), ("Miles_per_Gallon", "Horsepower", "Weight_in_lbs", "Acceleration")),
    "driving": (("year",), ("miles", "gas")),
    "iowa_electricity": (("source", "year"), ("net_generation",)),
    "iris": (("species",), ("sepalLength", "sepalWidth", "petalLength", "petalWidth")),
    "seattle_weather": (("date",), ("precipitation", "temp_max", "temp_min", "wind")),
    "stocks": (("symbol", "date"), ("price",)),
    "us_employment": (
        ("month",),
        ("construction", "manufacturing", "retail_trade", "information", "government"),
    ),
    "wheat": (("year",), ("wheat", "wages")),
}


@cache
def table(name: str) -> pd.DataFrame:
    """Return the charted columns of a table, indexed by row name, without incomplete rows."""
    naming, charted = TABLES[name]
    # The package's own reader would convert the dates in row names to time stamps.
    file = getattr(local_data, name).filepath
    frame = pd.read_csv(file) if file.endswith(".csv") else pd.read_json(file)
    names = frame[list(naming)].astype(str).agg(" ".join, axis=1)
    # Rows with equal names (flowers of a species, models of a year) get their row number.
    twins = names.duplicated(keep=False)
    frame.index = pd.Index(names.where(~twins, names + " #" + names.index.astype(str)))
    return frame[list(charted)].dropna()


@cache
def split_rows(name: str) -> dict[str, np.ndarray]:
    """Partition the row numbers of a table into splits."""
    return partition([SEED, list(TABLES).index(name)], len(table(name)), ROW_SHARES)


def heights(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Rescale values linearly to integers from 1 to 9."""
    low, high = int(rng.integers(1, 5)), int(rng.integers(6, HIGHEST + 1))
    spread = (values - values.min()) / (values.max() - values.min())
    return np.rint(low + spread * (high - low)).astype(int)


def picture(bars: list[tuple[int, str, int]]) -> Image.Image:
    """Draw a chart of ``bars``: (grid column from 0, color, height in units)."""
    image = Image.new("RGB", (SIZE, SIZE), (252, 252, 250))
    pen = ImageDraw.Draw(image)
    for value in range(1, HIGHEST + 1):
        y = BASE - UNIT * value
        pen.line([(0, y), (SIZE - 1, y)], fill=(150, 150, 155) if value == 5 else (222, 222, 224))
    for column, color, value in bars:
        left = column * CELL + 3
        pen.rectangle([left, BASE - UNIT * value, left + CELL - 7, BASE - 1], fill=COLORS[color])
    pen.line([(0, BASE), (SIZE - 1, BASE)], fill=(70, 70, 78))
    return image


def _questions(rng: np.random.Generator, bars: list[tuple[str, int]]) -> list[Question]:
    ranked = sorted(bars, key=lambda bar: bar[1])
    shown = "the bars are " + " , ".join(f"{color} {value}" for color, value in bars)
    if rng.random() < 0.5:
        tallest = Question("which bar is tallest ?", ranked[-1][0], "tallest", shown)
    else:
        tallest = Question("which bar is shortest ?", ranked[0][0], "tallest", shown)
    color, value = bars[int(rng.integers(len(bars)))]
    read = Question(
        f"what is the value of the {color} bar ?",
        str(value),
        "value",
        f"the top of the {color} bar is at {value}",
    )
    pairs = [(a, b) for a in bars for b in bars if a[1] > b[1]]
    high, low = pairs[int(rng.integers(len(pairs)))]
    a, b = (high, low) if rng.random() < 0.5 else (low, high)
    word, yes = ("taller", a is high) if rng.random() < 0.5 else ("shorter", a is low)
    compare = Question(
        f"is the {a[0]} bar {word} than the {b[0]} bar ?",
        "yes" if yes else "no",
        "compare",
        f"the {a[0]} bar is {a[1]} and the {b[0]} bar is {b[1]}",
    )
    high, low = pairs[int(rng.integers(len(pairs)))]
    difference = Question(
        f"how much taller is the {high[0]} bar than the {low[0]} bar ?",
        str(high[1] - low[1]),
        "difference",
        f"the {high[0]} bar is {high[1]} and the {low[0]} bar is {low[1]}",
    )
    return [tallest, read, compare, difference]


def _draw(rng: np.random.Generator, split: str) -> Scene | None:
    name = list(TABLES)[int(rng.integers(len(TABLES)))]
    frame, own = table(name), split_rows(name)[split]
    how_many = min(int(rng.integers(3, GRID + 1)), len(own))
    chosen = rng.choice(own, how_many, replace=False)
    column = frame.columns[int(rng.integers(frame.shape[1]))]
    values = frame[column].to_numpy(dtype=float)[chosen]
    if values.min() == values.max():
        return None
    scaled = heights(rng, values)
    # The tallest and the shortest bar must be unique.
    if (scaled == scaled.max()).sum() > 1 or (scaled == scaled.min()).sum() > 1:
        return None
    colors = [str(color) for color in rng.permutation(list(COLORS))[:how_many]]
    columns = sorted(rng.choice(GRID, how_many, replace=False).tolist())
    units = [int(value) for value in scaled]
    names = " | ".join(str(frame.index[row]) for row in chosen)
    return Scene(
        picture(list(zip(columns, colors, units, strict=True))),
        f"{name}: {column} of {names}",
        " , ".join(f"{color} {value}" for color, value in zip(colors, units, strict=True)),
        _questions(rng, list(zip(colors, units, strict=True))),
    )


def build() -> dict[str, list[Row]]:
    """Return the rows of each split."""
    return draw_splits("charts", SEED, _draw)
