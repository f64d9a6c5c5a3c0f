"""Experiments: the name of an arm becomes a spec, a trained student, and a row of results.

The path of a run, downward: :mod:`~masters.experiments.arms` (name to spec),
:mod:`~masters.experiments.results` (what is missing), :mod:`~masters.experiments.response_plan` (the
responses and scores it reads), :mod:`~masters.experiments.run` (train, evaluate, keep),
:mod:`~masters.experiments.curriculum` (which question when), :mod:`~masters.experiments.evaluation` (its
answers). :mod:`~masters.experiments.lab` holds the assets: questions, models, responses.
:mod:`~masters.experiments.memory` estimates the memory of a step.
"""
