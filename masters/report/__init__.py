"""Executed notebooks and the book.

:mod:`~masters.report.notebooks` runs a notebook, :mod:`~masters.report.book` builds the book from the
notebooks and :mod:`masters.pages`. :mod:`~masters.report.search` lets its search find claims and arms, and
:mod:`~masters.report.finish` is its last step.
"""
