"""The paper's fifteen claims: their evidence, the comparisons that test them, and the verdicts.

Read in this order: :mod:`~masters.claims.claims`, :mod:`~masters.claims.evidence` (the paper's tables),
:mod:`~masters.claims.comparisons` (two arms), :mod:`~masters.claims.statistics` (intervals and p-values),
:mod:`~masters.claims.verdicts` (the rule), :mod:`~masters.claims.table` (the file they end in).
"""
