"""The page of earlier studies: their verdicts, kept as tables without the runs behind them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masters_book.claims.table import CLAIMS
from masters_book.pages.rendering import fill
from masters_book.results import STUDY
from masters_book.results.tables import read_table

FOLDER = STUDY.with_name("earlier")
# By the name of the table, oldest study first.
TITLES = {"plateau": "A student at its plateau", "room": "A student with room to learn"}


def earlier_page(folder: Path = FOLDER) -> str:
    """Return a table of the claims with the verdict and effect of each earlier study.

    Raises:
        ValueError: a table is damaged.
        OSError: a table is missing.
    """
    tables = [read_table(folder / f"{name}.csv", CLAIMS).to_dict("records") for name in TITLES]
    studies = [{row["id"]: row for row in table} for table in tables]
    header = ["Claim", *TITLES.values()]
    rows = [
        [f"{name}. {of['statement']}", *(_cell(study[name]) for study in studies)]
        for name, of in studies[-1].items()
    ]
    return fill("table.md", header=header, rows=rows, caption="The claims in the earlier studies")


def _cell(row: Mapping[Any, Any]) -> str:
    if not row["seeds"] > 0:
        return str(row["verdict"])
    interval = f"\n{row['low']} to {row['high']}" if row["low"] and row["high"] else ""
    ours = f"{row['verdict']}\n{row['ours']} {row['unit']}{interval}\n{row['seeds']:.0f} replicates"
    return f"{ours}\npaper {row['paper']}" if row["paper"] else ours
