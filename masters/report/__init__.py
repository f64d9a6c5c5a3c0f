"""Executed notebooks and the book.

:mod:`~masters.report.notebooks` runs a notebook, :mod:`~masters.report.book` builds the book from the
notebooks and :mod:`masters.pages`, and :mod:`~masters.report.finish` is its last step.
"""
