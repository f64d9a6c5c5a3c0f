"""The generated pages of the book: Markdown from tables, by templates that escape everything.

:mod:`~masters.pages.first` is the first page, :mod:`~masters.pages.study` with its
:mod:`~masters.pages.study_tables` a study's, :mod:`~masters.pages.imitation` that of the imitation study.
:mod:`~masters.pages.responses` shows responses with their rewards, :mod:`~masters.pages.paper` the paper's
tables beside ours, :mod:`~masters.pages.mind` what would change a verdict, :mod:`~masters.pages.why` the
reasons for null results, :mod:`~masters.pages.settings` and :mod:`~masters.pages.departures` how this project
differs from the paper, :mod:`~masters.pages.api` the API. :mod:`~masters.pages.answers` is the box with which
a notebook opens, :mod:`~masters.pages.method` the worked example. The parameters of the notebooks are in
:mod:`~masters.pages.parameters`, and :mod:`~masters.pages.rendering` fills the templates. The figures are in
:mod:`masters.figures`.
"""
