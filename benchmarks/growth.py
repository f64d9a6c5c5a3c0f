"""How the time of a training step grows with its sizes. ``make bench`` measures it, and the book plots it.

One size changes at a time: tokens per prompt, responses per question, words in the vocabulary, or parameters
of the student (by its width). Each is timed packed and with one row per response, alternating. On doubly
logarithmic axes a power law, ``seconds = c * value ** exponent``, is a line with that slope.
"""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.training import Step
from masters_book.claims.significance import power_law

REPETITIONS = 5
AXES: dict[str, tuple[tuple[int, ...], Callable[[int], Step]]] = {
    "prompt tokens": ((32, 64, 128, 256, 512), lambda value: Step(prompt=value)),
    "responses": ((1, 2, 4, 8, 16), lambda value: Step(prompt=300, responses=value)),
    "vocabulary": ((1_000, 4_000, 16_000, 64_000), lambda value: Step(prompt=300, words=value)),
    "student parameters": ((32, 64, 128, 256), lambda value: Step(prompt=300, width=value)),
}


def measure() -> pd.DataFrame:
    """Time every size of every axis.

    Returns:
        One row per size and way (``packed`` or ``rows``): axis, value, way, seconds (median), smallest,
        largest.
    """
    rows = []
    for axis, (values, make) in AXES.items():
        for value in values:
            step = make(value)
            ways = {"packed": step.backward(), "rows": step.backward(together=False)}
            times: dict[str, list[float]] = {way: [] for way in ways}
            for repetition in range(REPETITIONS + 1):
                for way, run in ways.items():
                    start = time.perf_counter()
                    run()
                    if repetition:  # the first is a warm-up
                        times[way].append(time.perf_counter() - start)
            size = step.student.num_parameters() if axis == "student parameters" else value
            for way, seconds in times.items():
                spread = {"seconds": np.median(seconds), "smallest": min(seconds), "largest": max(seconds)}
                rows.append({"axis": axis, "value": size, "way": way, **spread})
    return pd.DataFrame(rows)


def powers(table: pd.DataFrame) -> list[str]:
    """Return one line per axis and way: the fitted exponent and its standard error."""
    lines = []
    for (axis, way), points in table.groupby(["axis", "way"], sort=False):
        power, error = power_law(points["value"], points["seconds"])
        lines.append(f"time grows with {axis} to the power of {power:.2f} +- {error:.2f} ({way})")
    return lines
