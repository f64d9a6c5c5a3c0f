"""The loss of Masters as pure functions of tensors (Eq. 4 to 11).

``L = E[JSD(teacher_r || student) - (rho A - beta KL(student || reference))]`` over stored responses, with
``A = (R - mean R) / std R`` within a question's group and ``R = R_acc + R_distill``.

Read in this order: :mod:`~masters.objective.divergence` (Eq. 4, 5), :mod:`~masters.objective.rewards` (Eq. 7,
10),
:mod:`~masters.objective.loss` (Eq. 8, 9, 11), :mod:`~masters.objective.token_terms` (the same for large
vocabularies), :mod:`~masters.objective.logits` (forms of logits), :mod:`~masters.objective.topk`
(log-probabilities in few bytes), :mod:`~masters.objective.diagnostics` (what is logged beside the loss).
"""
