"""The figure of the method: whole on wide and narrow screens, with every number in its words."""

import pytest
from worked import worked

from masters_book.figures.method import method_figure


@pytest.mark.parametrize("narrow", [False, True])
def test_text_stays_inside_the_figure(narrow: bool) -> None:
    long = "a very long question about everything in the picture and more " * 6
    figure = method_figure(worked(question=long, label=long), narrow)
    figure.draw_without_rendering()
    size = figure.bbox
    (axis,) = figure.axes
    for text in axis.texts:
        if text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= size.x1 and box.y0 >= 0 and box.y1 <= size.y1, text.get_text()


def test_words_hold_the_numbers() -> None:
    words = method_figure(worked()).alt
    for number in (
        "2 of 10 weights",
        "below 0.3000",
        "in 3 stages",
        "“answer 1”, accuracy reward 1, divergence 0.250",
    ):
        assert number in words
    assert f"policy term 0, KL 0, in total {0.2375:.3f}." in words


def test_model_output_is_no_formula() -> None:
    answers = worked().answers
    odd = answers[0].model_copy(update={"text": "$\\frac{1$ <b>"})
    figure = method_figure(worked(answers=(odd, *answers[1:])))
    figure.draw_without_rendering()
    assert any("$\\frac" in text.get_text() for text in figure.axes[0].texts)
