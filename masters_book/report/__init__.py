"""Executed notebooks and the book.

:mod:`~masters_book.report.notebooks` runs a notebook, :mod:`~masters_book.report.book` builds the book from
the notebooks (:mod:`~masters_book.report.notebook_pages`) and :mod:`masters_book.pages`.
:mod:`~masters_book.report.search` lets its search find claims and arms. The last steps are
:mod:`~masters_book.report.glossary`, which links terms, and :mod:`~masters_book.report.finish`.
"""
