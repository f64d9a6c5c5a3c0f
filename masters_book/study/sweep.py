"""Learning-rate sweep of a study: accuracy, response length and KL of several objectives."""

import pandas as pd

from masters.experiments.arms import split


def swept(runs: pd.DataFrame) -> pd.DataFrame:
    """Select arms that differ from another in the learning rate alone: the other's name is ``form``."""
    named = [split(str(arm)) for arm in runs["arm"]]
    swept = [set(values) == {"learning_rate"} and "+" not in form for form, values in named]
    forms, rates = [form for form, _ in named], [values.get("learning_rate") for _, values in named]
    return runs.assign(form=forms, rate=pd.Series(rates, runs.index, dtype=float))[swept]


def whole(runs: pd.DataFrame) -> pd.DataFrame:
    """Select the replicates with the most swept arms."""
    arms = swept(runs).groupby("replicate").size()
    return runs[runs["replicate"].isin(arms.index[arms == arms.max()])]


def worst(runs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Return each objective at the learning rate with its lowest mean accuracy.

    Only learning rates that all objectives have count.

    Returns:
        Columns rate, form, accuracy, tokens, kl (means over replicates), one row per objective from the least
        accurate; and the smallest and largest of these learning rates.
    """
    means = swept(runs).groupby(["rate", "form"], sort=False)[["accuracy", "tokens", "kl"]].mean()
    forms = means.groupby("rate").size()
    shared = forms.index[forms == forms.max()]
    means = means.loc[shared].reset_index()
    table = means.loc[means.groupby("form")["accuracy"].idxmin()].sort_values("accuracy")
    return table, (float(shared.min()), float(shared.max()))
