"""The book of the reproduction: the studies of the method, the paper's claims, the figures and the pages.

:mod:`masters` is the method and imports nothing from here. Read in this order: :mod:`~masters_book.results`
(its files), :mod:`~masters_book.claims` (from differences to verdicts), :mod:`~masters_book.analysis`
(measurements without training), :mod:`~masters_book.study` and :mod:`~masters_book.imitation` (the studies),
:mod:`~masters_book.figures`, :mod:`~masters_book.pages`, :mod:`~masters_book.report` (notebooks and book),
:mod:`~masters_book.commands` (the shell commands).
"""
