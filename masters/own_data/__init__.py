"""Questions of your own: rows of files, folders or the hub, checked and encoded like the built-in sets.

Read in this order: :mod:`~masters.own_data.sources` (where rows come from), :mod:`~masters.own_data.rows`
(question, answer and pictures of a row), :mod:`~masters.own_data.pictures` (pixels of a picture),
:mod:`~masters.own_data.question_set` (splits, skipped rows), :mod:`~masters.own_data.encoding` (model
inputs), :mod:`~masters.own_data.page` (what ``masters data check`` shows), :mod:`~masters.own_data.tasks`
(the question sets of a profile).
"""
