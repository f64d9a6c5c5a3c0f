"""Question sets: images with questions, answers and training labels in several wordings.

Read in this order: :mod:`~masters.data.tasks` (the built-in sets), :mod:`~masters.data.scenes` and the four
generators, :mod:`~masters.data.labels` (labels in words), :mod:`~masters.data.questions` (model inputs).
"""
