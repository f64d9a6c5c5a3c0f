"""The generated pages of the book: Markdown from tables, by templates that escape everything.

:mod:`~masters_book.pages.first` is the first page, :mod:`~masters_book.pages.study` with its
:mod:`~masters_book.pages.study_tables` a study's, :mod:`~masters_book.pages.imitation` that of the imitation
study, :mod:`~masters_book.pages.earlier` that of the studies before.
:mod:`~masters_book.pages.responses` shows responses with their rewards, :mod:`~masters_book.pages.paper` the
paper's tables beside ours, :mod:`~masters_book.pages.mind` what would change a verdict,
:mod:`~masters_book.pages.why` the reasons for null results. :mod:`~masters_book.pages.settings` and
:mod:`~masters_book.pages.departures` say how this project differs from the paper,
:mod:`~masters_book.pages.run_file` has every parameter of a run file, :mod:`~masters_book.pages.api` the API.
:mod:`~masters_book.pages.answers` is the box with which a notebook opens,
:mod:`~masters_book.pages.method` the worked example. The parameters of the notebooks are in
:mod:`~masters_book.pages.parameters`, and :mod:`~masters_book.pages.rendering` fills the templates. The
figures are in :mod:`masters_book.figures`.
"""
