"""What can be said of a lab's models and responses without training anything new.

:mod:`~masters.analysis.groups` (rewards and advantages as training sees them),
:mod:`~masters.analysis.masked_teachers` (accuracy and dose of a mask), :mod:`~masters.analysis.blind` (the
question's text alone), :mod:`~masters.analysis.costs` (offline against online).
"""
