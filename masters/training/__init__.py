"""Training: one way for every phase, from the small models' first steps to Masters.

Read in this order: :mod:`~masters.training.examples` (what a step reads), :mod:`~masters.training.trainer`
(what a step does), :mod:`~masters.training.train` (a whole run), :mod:`~masters.training.checkpoints`,
:mod:`~masters.training.adapters` (float32 weights, LoRA), :mod:`~masters.training.memory` (an estimate),
:mod:`~masters.training.online` (the online baseline) and :mod:`~masters.training.ladder` (small models
trained from scratch).
"""
