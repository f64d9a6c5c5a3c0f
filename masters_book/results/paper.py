"""The paper's tables, as printed, from ``data/paper``."""

import pandas as pd

from masters.runtime.files import ROOT
from masters_book.results.tables import read_table


def paper_table(name: str) -> pd.DataFrame:
    """Read a table of the paper from ``data/paper/``, such as ``table5a_rmax``.

    Raises:
        ValueError: the table does not exist; the message lists those that do.
    """
    path = ROOT / "data" / "paper" / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.csv")))
        raise ValueError(f"no paper table {name!r} in {path.parent}; there are: {known}")
    return read_table(path)
