"""The sweep of a study: some forms of the objective over decades of the learning rate.

What becomes of accuracy, of the length of the answers, and how far the student goes from where it began.
"""

import pandas as pd


def swept(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of arms whose names end in a learning rate, the parts of these in ``form`` and ``rate``."""
    named = runs["arm"].astype(str).str.extract(r"^([^+]+)\+learning_rate=([^+]+)$")
    return runs.assign(form=named[0], rate=named[1].astype(float)).dropna(subset="form")


def whole(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of those replicates in which the most arms have a learning rate in their name."""
    arms = swept(runs).groupby("replicate").size()
    return runs[runs["replicate"].isin(arms.index[arms == arms.max()])]


def worst(runs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Each form of the objective at the worst of the learning rates that all forms have, means of replicates.

    Returns:
        One row a form, the least accurate first: rate, form, accuracy, tokens, kl; and the ends of the rates.
    """
    means = swept(runs).groupby(["rate", "form"], sort=False)[["accuracy", "tokens", "kl"]].mean()
    forms = means.groupby("rate").size()
    shared = forms.index[forms == forms.max()]
    means = means.loc[shared].reset_index()
    table = means.loc[means.groupby("form")["accuracy"].idxmin()].sort_values("accuracy")
    return table, (float(shared.min()), float(shared.max()))
