"""What the pictures of the book share: size, colours, and a figure that a notebook shows exactly once."""

import io
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from masters.runtime.files import write_atomic

WIDTH = 7.0
COLOURS: list[Any] = list(sns.color_palette("colorblind"))
INK, QUIET, BAND = "#333333", "#8c8c8c", "#e6e6e6"


def style() -> None:
    """The look of the book; every picture applies it, call it for one of your own."""
    small = {"xtick.labelsize": 10, "ytick.labelsize": 10, "figure.facecolor": "white"}
    lines = {"axes.edgecolor": QUIET, "grid.color": BAND, "lines.linewidth": 1.8, "lines.markersize": 7}
    text = {"font.size": 11, "axes.labelsize": 11, "axes.titlesize": 11, "legend.fontsize": 10}
    colours = {"text.color": INK, "axes.labelcolor": INK}
    sns.set_theme(style="whitegrid", palette="colorblind", rc={**small, **lines, **text, **colours})


def panels(rows: int = 1, columns: int = 1, height: float = 4.0, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of ``rows`` times ``height`` inches that pyplot forgets, so that a notebook shows it once."""
    style()
    options |= {"figsize": (WIDTH, rows * height), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(rows, columns, **options)
    plt.close(figure)
    return figure, list(axes.flat)


def need(frame: pd.DataFrame, *columns: str) -> None:
    """Refuse a table that lacks a column.

    Raises:
        ValueError: it does; the message has those that are there.
    """
    if lacking := [name for name in columns if name not in frame]:
        raise ValueError(
            f"the table to draw lacks {', '.join(lacking)}; it has: {', '.join(map(str, frame))}"
        )


def write_svg(figure: Figure, path: Path) -> None:
    """Write a picture as SVG, whole or not at all; the same bytes for the same picture."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    write_atomic(path, text.getvalue())
