"""The figure of the method: one question from the picture to the loss, with the numbers of a run.

There is one layout for wide and one for narrow screens. Sizes are in inches from the top left corner.
"""

import base64
import io
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from masters.masking.schedule import MaskSchedule
from masters_book.analysis.example import Answer, Worked
from masters_book.claims.table import signed
from masters_book.figures.names import title_of
from masters_book.figures.style import BAND, COLORS, INK, QUIET, Drawing, style

WIDE, NARROW = 8.5, 4.8
LINE, BASE, PAD = 0.185, 0.13, 0.1  # of a line of text, of its baseline, and inside a box
UP, DOWN = COLORS[2], COLORS[3]
TEACHER, STUDENT = COLORS[0], COLORS[1]


def method_figure(example: Worked, narrow: bool = False) -> Drawing:
    """Draw question, mask, schedule, responses with their rewards, and the loss.

    Args:
        example: result of :func:`masters_book.analysis.example.worked_example`.
        narrow: layout for phones: everything below each other, and two lines per response.
    """
    rows = len(example.answers)
    if narrow:
        tall = (1.25, 1.55, 1.15, 0.68 + 0.42 * rows, 1.2)
    else:
        tall = (1.75, 0.0, 0.0, 0.68 + 0.24 * rows, 0.82)
    gap = 0.27
    height = sum(tall) + gap * (4 if narrow else 2) + 0.1
    sheet = _Sheet(NARROW if narrow else WIDE, height)
    top = 0.05
    if narrow:
        wide = NARROW - 0.1
        places = []
        for each in tall:
            places.append((0.05, top, wide, each))
            top += each + gap
        for (_, above, _, size), (_, below, _, _) in pairwise(places):
            sheet.arrow(NARROW / 2, above + size, NARROW / 2, below)
    else:
        third = (WIDE - 0.1 - 2 * gap) / 3
        places = [(0.05 + at * (third + gap), top, third, tall[0]) for at in range(3)]
        below = top + tall[0] + gap
        places.append((0.05, below, WIDE - 0.1, tall[3]))
        places.append((0.05, below + tall[3] + gap, WIDE - 0.1, tall[4]))
        for x, y, w, h in places[:2]:
            sheet.arrow(x + w / 2, y + h, x + w / 2, below)
        sheet.arrow(places[2][0], top + tall[0] / 2, places[1][0] + third, top + tall[0] / 2)
        sheet.arrow(WIDE / 2, below + tall[3], WIDE / 2, places[4][1])
    _question(sheet, example, *places[0])
    _mask(sheet, example, *places[1])
    _schedule(sheet, example, *places[2])
    _responses(sheet, example, narrow, *places[3])
    _loss(sheet, example, *places[4])
    sheet.figure.alt = _words(example)
    return sheet.figure


class _Sheet:
    """A figure of one axis in inches, with the origin at the top left."""

    def __init__(self, width: float, height: float) -> None:
        style()
        self.figure: Any = Drawing(figsize=(width, height))
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set(xlim=(0, width), ylim=(height, 0))
        self.axis.axis("off")

    def box(self, title: str, x: float, y: float, w: float, h: float) -> tuple[float, float]:
        """Draw a box with a title; return where its content begins."""
        shape = "round,pad=0,rounding_size=0.06"
        self.axis.add_patch(FancyBboxPatch((x, y), w, h, shape, fc="white", ec=QUIET, lw=1))
        self.text(x + PAD, y + PAD, title, weight="bold")
        return x + PAD, y + PAD + LINE + 0.06

    def text(self, x: float, y: float, words: str, **look: Any) -> None:
        """Write text whose first line begins at ``y``; model output is never read as a formula."""
        drawn: dict[str, Any] = {"fontsize": 10, "va": "baseline", "color": INK} | look
        for at, line in enumerate(words.split("\n")):
            self.axis.text(x, y + BASE + LINE * at, line, parse_math=False, **drawn)

    def bar(self, x: float, y: float, w: float, h: float, color: str) -> None:
        """Draw a bar from ``x``, to the left if ``w`` is negative."""
        self.axis.add_patch(Rectangle((min(x, x + w), y), abs(w), h, fc=color, lw=0))

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Draw an arrow."""
        look = {"arrowstyle": "-|>", "color": INK, "lw": 1.4, "shrinkA": 1, "shrinkB": 1}
        self.axis.annotate("", (to_x, to_y), (x, y), arrowprops=look)


def _question(sheet: _Sheet, example: Worked, x: float, y: float, w: float, h: float) -> None:
    left, top = sheet.box("One question", x, y, w, h)
    room = w - 2 * PAD
    if example.picture:
        size = min(h - (top - y) - PAD, 0.8)
        image = Image.open(io.BytesIO(base64.b64decode(example.picture)))
        extent = (left, left + size, top + size, top)
        sheet.axis.imshow(np.asarray(image), extent=extent, interpolation="nearest", aspect="auto", zorder=3)
        sheet.axis.set(xlim=(0, sheet.figure.get_figwidth()), ylim=(sheet.figure.get_figheight(), 0))
        left, room = left + size + 0.12, room - size - 0.12
    words = [*_wrapped(example.question, room, 5), "", *_wrapped(f"Label: {example.label}", room, 2)]
    sheet.text(left, top, "\n".join(words))


def _mask(sheet: _Sheet, example: Worked, x: float, y: float, w: float, h: float) -> None:
    mask = example.mask
    left, top = sheet.box(f"{title_of(example.teacher).capitalize()}, masked", x, y, w, h)
    room, words = w - 2 * PAD, f"{mask.removed:,} of {mask.weights:,} weights of a layer, those below "
    lines = _wrapped(f"{words}λ = {mask.threshold:.4f}, become 0", room, 3)
    sheet.text(left, top, "\n".join(lines))
    top += LINE * len(lines) + 0.08
    tall, each = y + h - PAD - LINE - top, room / len(mask.histogram)
    bin_width = mask.largest / len(mask.histogram)
    for at, count in enumerate(mask.histogram):
        size = tall * count / max(mask.histogram)
        zero = (at + 0.5) * bin_width < mask.threshold
        sheet.bar(left + at * each, top + tall - size, 0.85 * each, size, BAND if zero else TEACHER)
        if zero:
            edge = Rectangle((left + at * each, top + tall - size), 0.85 * each, size, fc="none", ec=QUIET)
            sheet.axis.add_patch(edge)
    sheet.text(left, top + tall + 0.03, "0", fontsize=9)
    sheet.text(left + room, top + tall + 0.03, f"magnitude {mask.largest:.2f}", ha="right", fontsize=9)


def _schedule(sheet: _Sheet, example: Worked, x: float, y: float, w: float, h: float) -> None:
    left, top = sheet.box("Restored in stages", x, y, w, h)
    ratios = MaskSchedule(example.r_max, example.r_step).ratios
    room, tall = w - 2 * PAD, y + h - PAD - LINE - 0.03 - top
    each = room / len(ratios)
    for at, ratio in enumerate(ratios):
        size = (tall - LINE - 0.03) * ratio / max(*ratios, 1e-9)
        floor = top + tall
        sheet.bar(left + at * each, floor - max(size, 0.02), 0.92 * each, max(size, 0.02), TEACHER)
        here = {"ha": "center", "fontsize": 9 if len(ratios) > 4 else 10}
        if at == 0:
            here["weight"] = "bold"
        sheet.text(left + (at + 0.46) * each, floor - max(size, 0.02) - LINE, f"r {ratio:g}", **here)
    sheet.text(left, top + tall + 0.03, f"{example.steps:,} steps; this is the first", fontsize=9)


def _responses(sheet: _Sheet, example: Worked, narrow: bool, x: float, y: float, w: float, h: float) -> None:
    count = sum(answer.source == example.teacher for answer in example.answers)
    left, top = sheet.box(
        f"{count} + {len(example.answers) - count} stored responses, judged and compared", x, y, w, h
    )
    right = x + w - PAD
    # Right ends of the columns, and the middle of the bars of the advantages.
    ends = [1.75, 2.5, 3.35] if narrow else [w - 3.95, w - 2.9, w - 1.95]
    ends = [x + end for end in ends]
    middle, reach = right - (0.72 if narrow else 0.95), 0.2 if narrow else 0.26
    heads = ["R acc", "D" if narrow else "divergence D", "R distill"]
    for end, words in zip(ends, heads, strict=True):
        sheet.text(end, top, words, ha="right", color=QUIET)
    sheet.text(right, top, "A" if narrow else "advantage A", ha="right", color=QUIET)
    if not narrow:
        sheet.text(left, top, "from", color=QUIET)
        sheet.text(left + 0.72, top, "response", color=QUIET)
    top += LINE + 0.05
    largest = max([abs(answer.advantage) for answer in example.answers] + [1e-9])
    step = 0.42 if narrow else 0.24
    for at, answer in enumerate(example.answers):
        line = top + at * step
        color = TEACHER if answer.source == example.teacher else STUDENT
        who = "teacher" if answer.source == example.teacher else "student"
        bold = {"weight": "bold"} if at == example.best else {}
        sheet.text(left, line, who, color=color)
        room = (w - 2 * PAD - 0.72) if narrow else ends[0] - left - 0.72 - 0.5
        sheet.text(left + 0.72, line, _wrapped(_said(answer), room, 1)[0], **bold)
        line += LINE if narrow else 0
        numbers = [f"{answer.correct:g}", f"{answer.divergence:.3f}"]
        numbers.append(f"{answer.reward_distillation:.2f}")
        for end, words in zip(ends, numbers, strict=True):
            sheet.text(end, line, words, ha="right", **bold)
        size = reach * answer.advantage / largest
        sheet.bar(middle, line + 0.03, size, 0.1, UP if size > 0 else DOWN)
        sheet.text(right, line, signed(answer.advantage), ha="right", **bold)


def _loss(sheet: _Sheet, example: Worked, x: float, y: float, w: float, h: float) -> None:
    left, top = sheet.box("Loss of this question", x, y, w, h)
    words = (
        f"mean divergence {example.divergence:.3f} + {example.policy_weight:g} × policy term "
        f"{_zero(example.policy)} + {example.beta:g} × KL {_zero(example.kl)} = {example.loss:.3f}. The "
        "policy term acts through its gradient: it raises the probability of responses with a positive "
        "advantage and lowers that of the others."
    )
    sheet.text(left, top, "\n".join(_wrapped(words, w - 2 * PAD, 7)))


def _zero(value: float) -> str:
    """Return a number with three decimals; rounding errors of zero are 0."""
    return "0" if abs(value) < 5e-4 else f"{value:.3f}"


def _said(answer: Answer) -> str:
    return f"“{answer.text}”" if answer.text.strip() else "(empty)"


def _wrapped(text: str, room: float, lines: int) -> Sequence[str]:
    """Break text into at most so many lines of a width in inches; the rest becomes dots."""
    chars = max(int(room * 13.2), 8)
    return textwrap.wrap(text, chars, max_lines=lines, placeholder=" ...") or [""]


def _words(example: Worked) -> str:
    mask = example.mask
    answers = "; ".join(
        f"{answer.source}: {_said(answer)}, accuracy reward {answer.correct:g}, divergence "
        f"{answer.divergence:.3f}, distillation reward {answer.reward_distillation:.2f}, advantage "
        f"{signed(answer.advantage)}"
        for answer in example.answers
    )
    return (
        f"One question through the method. Question: {example.question} Label: {example.label}. In a layer "
        f"of the {title_of(example.teacher)} {mask.removed:,} of {mask.weights:,} weights are set to zero, "
        f"those below {mask.threshold:.4f}; the mask ratio falls from {example.r_max:g} to 0 in "
        f"{MaskSchedule(example.r_max, example.r_step).stages} stages. Responses: {answers}. Loss: "
        f"divergence {example.divergence:.3f}, policy term {_zero(example.policy)}, KL {_zero(example.kl)}, "
        f"in total {example.loss:.3f}."
    )
