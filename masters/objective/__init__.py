"""The loss of Masters as pure functions of tensors (Eq. 4 to 11).

``L = E[JSD(teacher_r || student) - (rho A - beta KL(student || reference))]`` over stored responses, with
``A = (R - mean R) / std R`` within the group of responses to a question, and ``R = R_acc + R_distill``.

Read in this order: :mod:`~masters.objective.divergence` (Eq. 4, 5), :mod:`~masters.objective.rewards` (Eq. 7,
10), :mod:`~masters.objective.options` (every option), :mod:`~masters.objective.loss` (Eq. 8, 9, 11),
:mod:`~masters.objective.token_terms` (the terms of a token for large vocabularies),
:mod:`~masters.objective.logits` (representations of logits), :mod:`~masters.objective.topk` (compressed
log-probabilities), :mod:`~masters.objective.diagnostics` (what is logged besides the loss).
"""
