"""Responses of teachers and student, generated once, stored, judged, and scored by the teachers (Eq. 5, 6).

Read in this order: :mod:`~masters.responses.cached` (what other rooms call), :mod:`~masters.responses.store`
and
:mod:`~masters.responses.manifest` (on disk), :mod:`~masters.responses.source` (which model),
:mod:`~masters.responses.engines` (who generates),
:mod:`~masters.responses.sampling`, :mod:`~masters.responses.teacher_logprobs` (Eq. 4, 5 on stored responses),
:mod:`~masters.responses.masked` (a masked teacher as a folder).
"""
