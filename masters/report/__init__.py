"""Figures, pages, executed notebooks, and the book.

:mod:`~masters.report.notebooks` runs a notebook, :mod:`~masters.report.book` puts the book together from
:mod:`~masters.report.first_page`, :mod:`~masters.report.study_page`, :mod:`~masters.report.why_page` and
:mod:`~masters.report.departures`; figures are in :mod:`~masters.report.figures` and its neighbors and share
:mod:`~masters.report.style`.
"""
