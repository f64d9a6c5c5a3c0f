"""Shared by all figures: size, colors in both schemes, alternative texts, SVG and PNG files."""

import colorsys
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from masters.runtime.files import write_atomic

WIDTH = 7.0  # inches
# The hues of seaborn's "colorblind" palette, darker where needed: at least 3:1 on white and on BAND.
COLORS: list[Any] = [
    *("#0173b2", "#b07000", "#027f5c", "#c04f00", "#a8509a"),
    *("#8f5f33", "#d1407f", "#6b6b6b", "#857d00", "#2f7fae"),
]
INK, QUIET, BAND = "#333333", "#767676", "#e6e6e6"
DARKEST = 1 - 0x12 / 0xFF  # the page of the dark scheme is #121212
# Lines differ by marker and dash too, so that color is never the only sign.
MARKERS, DASHES = "osD^vPX*<>", ("-", "--", "-.", ":")


class Drawing(Figure):
    """A figure with an alternative text and a caption, which notebooks store beside its image.

    The figure as SVG is stored beside them, for the book.

    Attributes:
        alt: what the figure shows, in words and numbers; set by the function that draws it, like the caption.
        caption: what lines, marks and intervals are; empty where a page has its own.
    """

    alt = caption = ""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        """Return metadata only; IPython adds the image."""
        return {}, {"image/png": {"alt": self.alt, "caption": self.caption, "svg": svg(self, self.alt)}}


def style() -> None:
    """Set the fonts and colors of the book."""
    small = {"xtick.labelsize": 10, "ytick.labelsize": 10, "figure.facecolor": "white"}
    lines = {"axes.edgecolor": QUIET, "grid.color": BAND, "lines.linewidth": 1.8, "lines.markersize": 7}
    text = {"font.size": 11, "axes.labelsize": 11, "axes.titlesize": 11, "legend.fontsize": 10}
    colors = {"text.color": INK, "axes.labelcolor": INK}
    sns.set_theme(style="whitegrid", palette=COLORS, rc={**small, **lines, **text, **colors})


def panels(
    rows: int = 1, columns: int = 1, height: float = 4.0, **options: Any
) -> tuple[Drawing, list[Axes]]:
    """Return a figure and its axes, row by row.

    The figure is closed for pyplot, so that a notebook shows it only once.

    Args:
        rows: panels from top to bottom.
        columns: panels from left to right.
        height: inches per row.
        **options: passed to ``plt.subplots``.
    """
    style()
    options |= {"figsize": (WIDTH, rows * height), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(rows, columns, FigureClass=Drawing, **options)
    plt.close(figure)
    return figure, list(axes.flat)


def line_style(place: int) -> str:
    """Return dash and marker of the line at a place of the legend."""
    return DASHES[place % len(DASHES)] + MARKERS[place % len(MARKERS)]


def ends(name: object, x: Iterable[float], y: Iterable[float]) -> str:
    """Return a line's name with its first and last finite point, for an alternative text."""
    points = [(at, value) for at, value in zip(x, y, strict=True) if np.isfinite(value)]
    shown = dict.fromkeys((points[0], points[-1]) if points else ())
    return f"{name}: {', '.join(f'{value:.3g} at {at:.3g}' for at, value in shown) or 'no value'}"


def plain_numbers(*axes: Axis) -> None:
    """Label the ticks of logarithmic axes with plain numbers, not powers of ten, which need other fonts."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def svg(figure: Figure, salt: str) -> str:
    """Return a figure as SVG; the same figure and salt give the same text.

    Args:
        salt: seed of the ids in the file.
    """
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG; the same figure gives the same bytes."""
    write_atomic(path, svg(figure, path.stem))


def write_png(figure: Figure, path: Path, width: int) -> None:
    """Write a figure as PNG with a width in pixels."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=width / figure.get_figwidth())
    write_atomic(path, image.getvalue())


def in_dark(color: str) -> str:
    """Return a color's counterpart on a dark page: the same hue, light where it was dark; white is #121212.

    Args:
        color: ``#rrggbb``.
    """
    hue, light, full = colorsys.rgb_to_hls(*(int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)))
    # The power makes colors of middle lightness a little lighter, for contrast with a dark band.
    parts = colorsys.hls_to_rgb(hue, 1 - DARKEST * light**1.2, 0.8 * full)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def svg_in_dark(text: str) -> str:
    """Return an SVG figure for a dark page; pictures in it keep their colors."""
    recolored = re.sub(r'(?<!href=")#[0-9a-fA-F]{6}\b', lambda match: in_dark(match[0]), text)
    return recolored.replace("<svg ", f'<svg fill="{in_dark("#000000")}" ', 1)
