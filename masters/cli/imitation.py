"""``masters study imitation``: what is missing of the imitation study, and running it."""

from rich.console import Console

from masters.cli.responses import new_table


def imitation(processes: int, dry_run: bool) -> None:
    """Show what is missing of the imitation study and run it."""
    from masters.imitation.results import missing, run
    from masters.runtime import progress

    table = new_table("study imitation", [""], ["finished", "missing"])
    for part, (finished, lacking) in missing().items():
        table.add_row(part, str(finished), str(lacking))
    console = Console()
    console.print(table)
    console.print(
        "A trial takes minutes, a run up to an hour, the whole study many hours on two cores. Stop at any "
        "time: the same command continues with what is missing."
    )
    if not dry_run:
        with progress.shown():
            run(processes)
