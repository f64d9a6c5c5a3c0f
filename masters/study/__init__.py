"""The study: every claim's arms at many replicates, tuned, resumable, with its tables in git.

Read in this order: :mod:`~masters.study.plan`, :mod:`~masters.study.study`, :mod:`~masters.study.tables`,
:mod:`~masters.study.models`, :mod:`~masters.study.effects` (the map of effects), :mod:`~masters.study.sweep`.
"""
