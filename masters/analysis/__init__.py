"""Measurements on a lab's models and responses that need no further training.

:mod:`~masters.analysis.groups` (rewards and advantages as training computes them),
:mod:`~masters.analysis.example` (one question through all steps),
:mod:`~masters.analysis.masked_teachers` (accuracy and divergence of masked teachers),
:mod:`~masters.analysis.blind` (a baseline without images), :mod:`~masters.analysis.costs`
(offline vs. online).
"""
