"""Mask a teacher and give its weights back stage by stage (Eq. 1 to 3).

In each layer the ``floor(r n)`` weights of smallest magnitude are zero, ``w * 1[|w| >= lambda_r]``, and
``r[i] = r_max - s floor(i M / I)`` falls to 0 over the iterations.

Read in this order: :mod:`~masters.masking.schedule` (Eq. 3), :mod:`~masters.masking.teacher_mask` (Eq. 1, 2),
:mod:`~masters.masking.criteria` (other orders of the weights), :mod:`~masters.masking.selection` (the k
smallest, exactly), :mod:`~masters.masking.layers` (which weights), :mod:`~masters.masking.choice` (all of it
as data).
"""
