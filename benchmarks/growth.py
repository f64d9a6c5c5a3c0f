"""How the cost of a training step grows with what it is made of.

``make bench`` measures it, and the book plots it.

Four axes, one changed at a time: tokens of the prompt, responses of a question, words of the vocabulary, and
parameters of the student (by its width). Each is timed packed and with one row a response, side by side. On
doubly logarithmic axes a power law, ``seconds = c * value ** exponent``, is a line of that slope.
"""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.training import Step
from masters.claims.statistics import power_law
from masters.models.loading import parameter_count

REPETITIONS = 5
AXES: dict[str, tuple[tuple[int, ...], Callable[[int], Step]]] = {
    "prompt tokens": ((32, 64, 128, 256, 512), lambda value: Step(prompt=value)),
    "responses": ((1, 2, 4, 8, 16), lambda value: Step(prompt=300, responses=value)),
    "vocabulary": ((1_000, 4_000, 16_000, 64_000), lambda value: Step(prompt=300, words=value)),
    "student parameters": ((32, 64, 128, 256), lambda value: Step(prompt=300, width=value)),
}


def measure() -> pd.DataFrame:
    """Time every point.

    Returns:
        One row a point and way (``packed`` or ``rows``): axis, value, way, seconds (median), smallest,
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
                    if repetition:  # the first warms up
                        times[way].append(time.perf_counter() - start)
            at = parameter_count(step.student) if axis == "student parameters" else value
            for way, taken in times.items():
                spread = {"seconds": np.median(taken), "smallest": min(taken), "largest": max(taken)}
                rows.append({"axis": axis, "value": at, "way": way, **spread})
    return pd.DataFrame(rows)


def powers(table: pd.DataFrame) -> list[str]:
    """The fitted exponent of each axis and way with its standard error, a line each."""
    found = []
    for (axis, way), part in table.groupby(["axis", "way"], sort=False):
        power, error = power_law(part["value"], part["seconds"])
        found.append(f"time grows with {axis} to the power of {power:.2f} +- {error:.2f} ({way})")
    return found
