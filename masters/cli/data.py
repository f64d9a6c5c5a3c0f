"""The command ``masters data check``: read data of your own and show it as one page."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from masters.cli.responses import new_table

data = typer.Typer(no_args_is_help=True, help="Inspect data of your own.")


@data.callback()
def _group() -> None:
    """Keep ``check`` a command of its own as long as it is the only one."""


@data.command()
def check(
    run: Annotated[Path, typer.Argument(help="Run file; only its section data is read.")],
    output: Annotated[Path | None, typer.Option(help="Page to write. Default: RUN-data.html.")] = None,
) -> None:
    """Read every row, list what is skipped, and write counts and sample rows to an HTML page."""
    from masters.own_data.page import counts, page
    from masters.own_data.question_set import load_own_data
    from masters.runtime import progress
    from masters.runtime.files import write_atomic
    from masters.runtime.parameters import read_parameters
    from masters.settings import OwnData

    section = read_parameters(run).get("data")
    if not isinstance(section, dict):
        raise ValueError(f"{run} has no section data with at least 'train: FILE'")
    with progress.shown():
        own = load_own_data(OwnData.checked(section, run, "data"), run.parent)
    path = output or run.with_name(f"{run.stem}-data.html")
    write_atomic(path, page(own, f"Data of {run.name}"))
    every = {split: counts(rows) for split, rows in own.splits.items()}
    table = new_table(f"data of {run.name}", ["split"], [*every["train"]])
    for split, of_split in every.items():
        table.add_row(split, *(f"{count:,}" for count in of_split.values()))
    Console().print(table)
    print("\n".join([*own.problems, f"page: {path}"]))
