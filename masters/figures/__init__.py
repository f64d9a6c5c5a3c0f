"""Figures, drawn from tables alone: no model is loaded and no number is typed.

:mod:`~masters.figures.style` (size, colors, alternative texts, SVG files),
:mod:`~masters.figures.plots` (figures of the notebooks), :mod:`~masters.figures.claims` (all verdicts at
once), :mod:`~masters.figures.study` (effects and the learning-rate sweep of a study),
:mod:`~masters.figures.costs` (offline vs. online), :mod:`~masters.figures.method` (one question through the
method), :mod:`~masters.figures.names` (titles of arms and columns).
"""
