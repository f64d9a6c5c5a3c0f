"""The commands of the notebooks, the book and the studies, and with them all of ``masters``.

They are added to those of :mod:`masters.cli.main`, which knows nothing of this package.
"""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from masters.cli.main import app, main
from masters.cli.responses import ProfileName, new_table

__all__ = ["main"]


@app.command(rich_help_panel="Notebooks, book and studies")
def plan(profile: ProfileName) -> None:
    """Check every parameter of a profile; show what it runs, for how long, and what it can show."""
    from masters.settings import load_profile
    from masters_book.pages.parameters import NOTEBOOKS, notebook_parameters

    settings = load_profile(profile)
    for notebook in NOTEBOOKS:
        notebook_parameters(profile, notebook)
    table = new_table(f"profile {profile}", ["notebook"], ["expected minutes"], footer=True)
    table.columns[0].footer, table.columns[1].footer = "total", f"{sum(settings.minutes.values()):g}"
    table.caption = "with nothing cached"
    for notebook in NOTEBOOKS:
        table.add_row(notebook, f"{settings.minutes[notebook]:g}" if notebook in settings.minutes else "")
    console = Console()
    console.print(table)
    console.print(f"[bold]It can show[/] {escape(settings.shows)}")
    console.print(f"[bold]It cannot show[/] {escape(settings.cannot_show)}\n")


@app.command(rich_help_panel="Notebooks, book and studies")
def notebook(
    name: Annotated[str, typer.Argument(help="Name, such as 2_masking_ablations.")],
    profile: Annotated[str, typer.Option(help="Folder of notebooks/params.")] = "mini",
    output: Annotated[Path | None, typer.Option(help="Default: build/PROFILE/NAME.ipynb.")] = None,
) -> None:
    """Execute one notebook at a profile. The output is written only when complete."""
    from masters.runtime.files import ROOT
    from masters_book.report.notebooks import run_notebook

    run_notebook(name, profile, output or ROOT / "build" / profile / f"{name}.ipynb")


@app.command(rich_help_panel="Notebooks, book and studies")
def refresh(name: Annotated[str, typer.Argument(help="Name, such as 2_masking_ablations.")]) -> None:
    """Run a notebook in place with its default parameters and save its outputs."""
    from masters_book.report import notebooks as reproduce

    print("  outputs changed" if reproduce.refresh(name) else "  outputs unchanged")


@app.command(rich_help_panel="Notebooks, book and studies")
def book(profile: ProfileName) -> None:
    """Build the book from the executed notebooks of a profile."""
    from masters_book.report.book import build

    print(f"building the book for profile {profile}", flush=True)
    build(profile)


@app.command(rich_help_panel="Notebooks, book and studies")
def claims(profile: ProfileName) -> None:
    """Print the paper's claims with the results and verdicts of a profile."""
    from masters.runtime.files import ROOT

    _print_claims(f"the paper's claims at profile {profile}", ROOT / "build" / profile / "claims.csv")


@app.command(rich_help_panel="Notebooks, book and studies")
def study(
    name: Annotated[
        str, typer.Argument(help="Plan of the study, notebooks/params/NAME.yaml, or imitation.")
    ] = "study",
    replicates: Annotated[str, typer.Option(help="Number or range, such as 3 or 0-4. Default: all.")] = "",
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Runs in parallel. Default: the profile's; imitation: 2."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what is missing, then exit.")] = False,
) -> None:
    """Run what is missing of a study. Results are kept in data/results/NAME."""
    from masters.runtime import progress
    from masters_book.results import STUDY
    from masters_book.study.study import Study

    asked = _numbers(replicates)
    if name == "imitation":
        if asked is not None:
            raise ValueError("the study imitation has no replicates to choose: leave out --replicates")
        _imitation(processes or 2, dry_run)
        return
    study = Study(name, STUDY.parent / name, processes)
    if asked and (unplanned := [str(at) for at in asked if at not in {*study.planned(), *study.refused()}]):
        raise ValueError(
            f"no replicate {', '.join(unplanned)}: the plan has {', '.join(map(str, study.planned()))}"
        )
    minutes, missing, untried = study.minutes(asked), study.missing(asked), study.untried()
    table = new_table(f"study {name}", [""], ["finished", "missing", "minutes"])
    table.add_row("ladders to train", "", "", f"{minutes['ladder']:.0f}")
    table.add_row("trials (validation)", str(len(study.tried)), str(len(untried)), f"{minutes['trials']:.0f}")
    finished = study.runs.groupby("replicate").size()
    each = minutes["runs"] / max(1, sum(map(len, missing.values())))
    for replicate in study.planned() if asked is None else asked:
        lacking = len(missing.get(replicate, []))
        counts = (str(finished.get(replicate, 0)), str(lacking), f"{lacking * each:.0f}")
        table.add_row(f"runs of replicate {replicate}", *counts)
    console = Console()
    console.print(table)
    if any(missing.values()) or untried:
        about = f"About {sum(minutes.values()):.0f} minutes with {study.profile.processes} processes"
        console.print(
            f"{about}, plus the time to generate responses. Stop at any time: the same command continues "
            "with what is missing."
        )
    else:
        console.print("Nothing is missing.")
    if refused := study.refused():
        console.print(
            f"Without runs, as their teachers are too weak: replicates {', '.join(map(str, refused))}. "
            "Others take their place."
        )
    if uncertain := study.uncertain(asked):
        console.print(
            f"The models of these replicates are missing and must be retrained: "
            f"{', '.join(map(str, uncertain))}. Training is not bit-reproducible across machines: if the "
            "models differ, all runs of the replicate are rerun, which these minutes leave out."
        )
    console.print()
    if dry_run:
        return
    with progress.shown():
        study.run(asked)
    study.judge()
    _print_claims(f"the paper's claims in the study {name}", study.folder / "claims.csv")


def _imitation(processes: int, dry_run: bool) -> None:
    """Show what is missing of the imitation study and run it."""
    from masters.runtime import progress
    from masters_book.imitation.results import missing, run

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


def _numbers(text: str) -> list[int] | None:
    """Parse ``3`` or ``0-4``; return None for an empty text."""
    if not text:
        return None
    if not (match := re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text, re.ASCII)) or int(match[1]) > int(
        match[2] or match[1]
    ):
        raise ValueError(f"--replicates {text!r} must be a number or a range such as 0-4")
    return list(range(int(match[1]), int(match[2] or match[1]) + 1))


def _print_claims(title: str, path: Path) -> None:
    from masters_book.claims.table import read_claims

    colors = {"supported": "green", "not supported": "red", "reversed": "magenta", "undecided": "yellow"}
    table = new_table(title, ["claim", ""], ["paper", "ours", "95 % interval"])
    table.add_column("verdict")
    for claim in read_claims(path).to_dict("records"):
        verdict = f"[{colors.get(claim['verdict'], 'dim')}]{claim['verdict']}[/]"
        interval = f"{claim['low']} to {claim['high']}" if claim["ours"] else ""
        table.add_row(
            claim["id"], escape(claim["statement"]), claim["paper"], claim["ours"], interval, verdict
        )
    Console().print(table)


if __name__ == "__main__":
    main()
