"""Figures, drawn from tables alone: no model is loaded and no number is typed.

:mod:`~masters_book.figures.style` (size, colors, alternative texts, SVG files),
:mod:`~masters_book.figures.plots` (figures of the notebooks), :mod:`~masters_book.figures.claims` (all
verdicts at once), :mod:`~masters_book.figures.study` (effects and the learning-rate sweep of a study),
:mod:`~masters_book.figures.imitation` (divergences and learning curves of the imitation study),
:mod:`~masters_book.figures.costs` (offline vs. online), :mod:`~masters_book.figures.method` (one question
through the method), :mod:`~masters_book.figures.names` (titles of arms and columns).
"""
