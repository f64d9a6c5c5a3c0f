"""The paper's fifteen claims, the comparisons that test them, and the verdicts.

Read in this order: :mod:`~masters_book.claims.claims`, :mod:`~masters_book.claims.evidence` (the paper's
effects), :mod:`~masters_book.claims.comparisons` (our effects), :mod:`~masters_book.claims.statistics`
(intervals), :mod:`~masters_book.claims.significance` (p-values), :mod:`~masters_book.claims.verdicts` (the
rule), :mod:`~masters_book.claims.table` (``claims.csv``).
"""
