"""Executed notebooks and the book.

:mod:`~masters.report.notebooks` runs a notebook, :mod:`~masters.report.book` builds the book from the
notebooks (:mod:`~masters.report.notebook_pages`) and :mod:`masters.pages`.
:mod:`~masters.report.search` lets its search find claims and arms. The last steps are
:mod:`~masters.report.glossary`, which links terms, and :mod:`~masters.report.finish`.
"""
