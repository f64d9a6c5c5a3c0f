"""The study: every claim's arms at many replicates, tuned, resumable, with its tables in git.

Read in this order: :mod:`~masters_book.study.plan`, :mod:`~masters_book.study.study`,
:mod:`~masters_book.study.tables`, :mod:`~masters_book.study.models`, :mod:`~masters_book.study.effects` (the
map of effects), :mod:`~masters_book.study.sweep`, :mod:`~masters_book.study.provenance`
(commit, packages and machine).
"""
