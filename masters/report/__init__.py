"""Executed notebooks, pages, and the book.

:mod:`~masters.report.notebooks` runs a notebook, :mod:`~masters.report.book` builds the book from
:mod:`~masters.report.first_page`, :mod:`~masters.report.study_page`, :mod:`~masters.report.why_page` and
:mod:`~masters.report.departures`. The figures are in :mod:`masters.figures`.
"""
