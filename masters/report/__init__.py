"""Executed notebooks, pages, and the book.

:mod:`~masters.report.notebooks` runs a notebook, :mod:`~masters.report.book` builds the book from
:mod:`~masters.report.first_page`, :mod:`~masters.report.study_page`, :mod:`~masters.report.mind`,
:mod:`~masters.report.paper_page`, :mod:`~masters.report.settings_table`, :mod:`~masters.report.why_page`,
:mod:`~masters.report.departures` and :mod:`~masters.report.api_pages`; :mod:`~masters.report.finish` is its
last step. The figures are in :mod:`masters.figures`.
"""
