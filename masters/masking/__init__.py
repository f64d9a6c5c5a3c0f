"""Mask a teacher and restore its weights stage by stage (Eq. 1 to 3).

In each layer the ``floor(r n)`` weights of smallest magnitude are set to zero. The mask ratio
``r[i] = r_max - s floor(i M / I)`` falls to 0 during training.

Read in this order: :mod:`~masters.masking.schedule` (Eq. 3), :mod:`~masters.masking.teacher_mask` (Eq. 1, 2),
:mod:`~masters.masking.criteria` (other criteria than magnitude), :mod:`~masters.masking.selection` (the k
smallest scores, exactly), :mod:`~masters.masking.layers` (the layers of a model),
:mod:`~masters.masking.choice` (criterion and layers as data).
"""
