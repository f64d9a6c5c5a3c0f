"""Models: loaded, or built small; questions packed into rows; what a model can read.

A question with its n responses is one row, ``[prompt, response 1 .. response n]``, in which responses do not
see each other.

Read in this order: :mod:`~masters.models.loading`, :mod:`~masters.models.source` (a model at a mask ratio),
:mod:`~masters.models.small`, :mod:`~masters.models.same_inputs` (student and teachers),
:mod:`~masters.models.packing`, :mod:`~masters.models.compatibility`, :mod:`~masters.models.calibration`.
"""
