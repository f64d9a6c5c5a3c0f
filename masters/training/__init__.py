"""Training: one way for every phase, from the small models' first steps to Masters.

Read in this order: :mod:`~masters.training.examples` (what a step reads), :mod:`~masters.training.trainer`
(what a step does), :mod:`~masters.training.train` (a whole run), :mod:`~masters.training.checkpoints`,
:mod:`~masters.training.adapters` and :mod:`~masters.training.memory` (what makes it fit),
:mod:`~masters.training.plateau` (stages that end when the student stops improving), and
:mod:`~masters.training.online` (the online baseline).
"""
