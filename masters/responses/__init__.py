"""Responses of teachers and student: generated once, stored, judged and scored by the teachers (Eq. 5, 6).

Read in this order: :mod:`~masters.responses.cached` (the entry point), :mod:`~masters.responses.store` and
:mod:`~masters.responses.manifest` (files on disk), :mod:`~masters.models.source` (which model generates),
:mod:`~masters.responses.engines` (how it generates), :mod:`~masters.responses.sampling`,
:mod:`~masters.responses.teacher_logprobs` (Eq. 4, 5 on stored responses), :mod:`~masters.responses.arrays`
(what training reads).
"""
