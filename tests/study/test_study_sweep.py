"""The learning-rate sweep has one line per objective."""

import pandas as pd
import pytest

from masters_book.figures.study import sweep


def test_the_sweep_has_a_line_a_form() -> None:
    rows = [
        {"arm": f"{form}+learning_rate={rate}", "accuracy": 0.5, "tokens": 7.0, "kl": value}
        for form in ("masters", "clipped", "naive", "masked", "accuracy_only")
        for rate, value in (("1e-06", 0.001), ("1e-03", 2.0))
    ]
    figure = sweep(pd.DataFrame([*rows, {"arm": "base", "accuracy": 0.4, "tokens": 5.0, "kl": float("nan")}]))
    accuracy, tokens, kl = figure.axes
    lines = {line.get_label(): line for line in kl.lines}
    assert list(lines["clipped ratio"].get_xdata()) == [1e-6, 1e-3]
    assert list(lines["clipped ratio"].get_ydata()) == [0.001, 2.0]
    assert len(tokens.lines) == 10 and list(accuracy.lines[1].get_ydata()) == [50.0, 50.0]
    with pytest.raises(ValueError, match="no arm at several learning rates"):
        sweep(pd.DataFrame([{"arm": "base", "accuracy": 0.4, "tokens": 5.0, "kl": 0.0}]))
