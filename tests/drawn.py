"""What the tests of figures ask of one."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from masters_book.figures.style import WIDTH


def xy(axis: Axes, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    line = axis.lines[index]
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


def readable(figure: Figure, width: float = WIDTH) -> None:
    """Draws it, then checks the size of every text and that each axis is inside the picture."""
    figure.draw_without_rendering()
    assert figure.get_size_inches()[0] == width
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()]  # type: ignore[attr-defined]
    assert min(sizes) >= 10
    for axis in figure.axes:
        if axis.get_visible():
            box = axis.get_tightbbox()
            assert box is not None
            assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, "text runs out of the picture"
            assert box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, "text runs out of the picture"
