"""Readers see words, not the names of the code."""

import pandas as pd

from masters.experiments.arms import CHANGES
from masters_book.figures.names import display_name, named, title_of


def test_arms_and_columns_have_words() -> None:
    assert display_name("naive_multi") == "naive distillation, responses"
    assert display_name("sampled_accuracy") == "sampled accuracy, %"
    assert display_name("easy-vqa") == "easy-vqa" and display_name(0.2) == 0.2
    assert display_name("+mask_progressive") == "+ mask progressive"
    assert title_of("an older arm") == "an older arm"
    assert not [name for name in CHANGES if "_" in display_name(name)]


def test_a_table_is_named_in_all_its_places() -> None:
    index = pd.MultiIndex.from_tuples([("masters", 0.2)], names=["arm", "ratio"])
    shown = named(pd.DataFrame({"accuracy": [1.0], "kl": [0.1]}, index=index).rename_axis(columns="task"))
    assert list(shown) == ["greedy accuracy, %", "KL to the base student, nats per token"]
    assert list(shown.index.names) == ["arm", "mask ratio"] and shown.index[0] == ("Masters", 0.2)
