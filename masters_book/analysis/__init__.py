"""Measurements on a lab's models and responses that need no further training.

:mod:`~masters_book.analysis.groups` (rewards and advantages as training computes them),
:mod:`~masters_book.analysis.example` (one question through all steps),
:mod:`~masters_book.analysis.masked_teachers` (accuracy and divergence of masked teachers),
:mod:`~masters_book.analysis.blind` (a baseline without images), :mod:`~masters_book.analysis.costs`
(offline vs. online), :mod:`~masters_book.analysis.latency` (time per answer),
:mod:`~masters_book.analysis.ladder` (the models and their training), :mod:`~masters_book.analysis.judges`
(judges against human verdicts), :mod:`~masters_book.analysis.trained_with` (settings of arms in words).
"""
