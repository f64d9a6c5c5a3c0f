"""Files of results: where the tracked ones are, tables checked against schemas, and the paper's own tables.

Read in this order: :mod:`~masters_book.results.intact` (files with checksums),
:mod:`~masters_book.results.tables`, :mod:`~masters_book.results.paper`.
"""

from masters.runtime.files import ROOT

STUDY = ROOT / "data" / "results" / "study"  # tables of the main study; those of others lie beside it
