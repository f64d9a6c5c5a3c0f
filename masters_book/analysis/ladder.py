"""The rungs of a lab's ladder as tables: their sizes, how they were trained, and their training curves."""

import json
from typing import Any

import pandas as pd

from masters.experiments.lab import Lab


def rungs(lab: Lab) -> pd.DataFrame:
    """Return one row per rung, training the ladder first if it is missing.

    Returns:
        model, parameters, training_steps, seconds (of training) and weights (a hash). A model from a folder
        or the hub has no steps and no seconds.
    """
    return pd.DataFrame([_rung(lab, name) for name in lab.profile.ladder])


def _rung(lab: Lab, name: str) -> dict[str, Any]:
    spec, about = lab.profile.ladder[name], lab.folder(name) / "training.json"
    trained = json.loads(about.read_text()) if about.is_file() else {}
    return {
        "model": name,
        "parameters": lab.skeleton(name).num_parameters(),
        "training_steps": trained.get("steps", 0 if spec.path else spec.steps),
        "seconds": trained.get("seconds", float("nan")),
        "weights": lab.source(name).weights(),
    }


def training_curves(lab: Lab) -> pd.DataFrame:
    """Return the training curves of the rungs trained here: model, step, loss."""
    frames = [pd.DataFrame(columns=["model", "step", "loss"])]
    for name, spec in lab.profile.ladder.items():
        if not spec.path:
            log = pd.read_parquet(lab.folder(name) / "log.parquet")
            frames.append(log.assign(model=name)[["model", "step", "loss"]])
    return pd.concat(frames[1:] or frames, ignore_index=True)
