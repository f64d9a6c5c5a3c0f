"""The paper's fifteen claims, the comparisons that test them, and the verdicts.

Read in this order: :mod:`~masters.claims.claims`, :mod:`~masters.claims.evidence` (the paper's effects),
:mod:`~masters.claims.comparisons` (our effects), :mod:`~masters.runtime.statistics` (intervals and p-values),
:mod:`~masters.claims.verdicts` (the rule), :mod:`~masters.claims.table` (``claims.csv``).
"""
