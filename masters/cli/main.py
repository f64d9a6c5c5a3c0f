"""The shell command ``masters``, which the Makefile calls.

A failure prints one line on stderr and exits with code 1, or 2 if the command line is wrong. Set
``MASTERS_DEBUG=1`` for the traceback.
"""

import os
import re
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from masters.cli import distill as cli_distill
from masters.cli import responses as cli_responses
from masters.cli.data import data
from masters.cli.imitation import imitation
from masters.cli.responses import ProfileName, new_table

LONGEST_LINE = 2000  # characters of an error message

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Mask the teacher, reinforce the student: the steps of `make reproduce`.",
)

app.command()(cli_distill.distill)
app.command()(cli_distill.chat)
app.command()(cli_responses.generate)
app.command()(cli_responses.judge)
app.command()(cli_responses.export)
app.add_typer(cli_responses.stored, name="responses")
app.add_typer(data, name="data")


@app.command()
def plan(profile: ProfileName) -> None:
    """Check every parameter of a profile; show what it runs, for how long, and what it can show."""
    from masters.pages.parameters import NOTEBOOKS, notebook_parameters
    from masters.settings import load_profile

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


@app.command()
def train(
    profile: ProfileName,
    arm: Annotated[
        str, typer.Argument(help="Arm of masters.experiments.arms, such as masters or r_max=0.4.")
    ],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed for the question order.")] = 0,
) -> None:
    """Train and evaluate one arm, on all processes started by torchrun or accelerate launch."""
    import json

    from masters.experiments.lab import Lab
    from masters.experiments.results import run_arm
    from masters.runtime import distributed, progress

    distributed.begin()
    with progress.shown() if distributed.rank() == 0 else nullcontext():
        folder = run_arm(Lab(profile), arm, seed)
    if distributed.rank() == 0:
        result = json.loads((folder / "result.json").read_text())
        print(f"{arm}, seed {seed}: accuracy {100 * result['accuracy']:.1f} %, {folder}")
    distributed.end()


@app.command()
def notebook(
    name: Annotated[str, typer.Argument(help="Name, such as 2_masking_ablations.")],
    profile: Annotated[str, typer.Option(help="Folder of notebooks/params.")] = "mini",
    output: Annotated[Path | None, typer.Option(help="Default: build/PROFILE/NAME.ipynb.")] = None,
) -> None:
    """Execute one notebook at a profile. The output is written only when complete."""
    from masters.report.notebooks import run_notebook
    from masters.runtime.files import ROOT

    run_notebook(name, profile, output or ROOT / "build" / profile / f"{name}.ipynb")


@app.command()
def refresh(name: Annotated[str, typer.Argument(help="Name, such as 2_masking_ablations.")]) -> None:
    """Run a notebook in place with its default parameters and save its outputs."""
    from masters.report import notebooks as reproduce

    print("  outputs changed" if reproduce.refresh(name) else "  outputs unchanged")


@app.command()
def book(profile: ProfileName) -> None:
    """Build the book from the executed notebooks of a profile."""
    from masters.report.book import build

    print(f"building the book for profile {profile}", flush=True)
    build(profile)


@app.command()
def claims(profile: ProfileName) -> None:
    """Print the paper's claims with the results and verdicts of a profile."""
    from masters.runtime.files import ROOT

    _print_claims(f"the paper's claims at profile {profile}", ROOT / "build" / profile / "claims.csv")


@app.command()
def study(
    name: Annotated[
        str, typer.Argument(help="Plan of the study, notebooks/params/NAME.yaml, or imitation.")
    ] = "study",
    replicates: Annotated[str, typer.Option(help="Number or range, such as 3 or 0-4. Default: all.")] = "",
    processes: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Runs in parallel. Default: as in the profile.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what is missing, then exit.")] = False,
) -> None:
    """Run what is missing of a study. Results are kept in data/results/NAME."""
    from masters.runtime import progress
    from masters.runtime.files import STUDY
    from masters.study.study import Study

    asked = _numbers(replicates)
    if name == "imitation":
        if asked is not None:
            raise ValueError("the study imitation has no replicates to choose: leave out --replicates")
        imitation(processes or 2, dry_run)
        return
    study = Study(name, STUDY.parent / name, processes)
    if asked and max(asked) >= study.plan.seeds:
        raise ValueError(f"no replicate {max(asked)}: the plan has replicates 0 to {study.plan.seeds - 1}")
    minutes, missing, untried = study.minutes(asked), study.missing(asked), study.untried()
    table = new_table(f"study {name}", [""], ["finished", "missing", "minutes"])
    table.add_row("ladders to train", "", "", f"{minutes['ladder']:.0f}")
    table.add_row("trials (validation)", str(len(study.tried)), str(len(untried)), f"{minutes['trials']:.0f}")
    finished = study.runs.groupby("replicate").size()
    each = minutes["runs"] / max(1, sum(map(len, missing.values())))
    for replicate in range(study.plan.seeds) if asked is None else asked:
        lacking = len(missing.get(replicate, []))
        counts = (str(finished.get(replicate, 0)), str(lacking), f"{lacking * each:.0f}")
        table.add_row(f"runs of replicate {replicate}", *counts)
    console = Console()
    console.print(table)
    console.print(
        f"About {sum(minutes.values()):.0f} minutes with {study.profile.processes} processes, plus the time "
        "to generate responses. Stop at any time: the same command continues with what is missing."
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
    from masters.claims.table import read_claims

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


def main() -> None:
    """Run the command; print a failure in one line.

    The exit code is 1 for a failure, 2 for a wrong command line, and 130 after Ctrl-C or SIGTERM.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "COLUMNS" in os.environ:  # tables of one letter per line, or of gigabytes, help no one
        os.environ["COLUMNS"] = str(min(max(shutil.get_terminal_size().columns, 40), 500))
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:  # outside of a command; in one, typer returns 130
        code = 130
    except Exception as error:
        if isinstance(error, typer.Abort) and isinstance(error.__cause__, EOFError):
            error = error.__cause__  # typer hides it
        if os.environ.get("MASTERS_DEBUG"):
            raise
        if hasattr(error, "format_message"):  # a wrong command line
            _stop(error.format_message(), 2)
        _stop(_line(error), told=isinstance(error, FloatingPointError | ValueError))
    if code == 130:
        _stop("interrupted; finished work is kept: run the same command to continue", code)
    sys.exit(code if isinstance(code, int) else 0)


def _line(error: Exception) -> str:
    """Return the message of an expected error; prefix other errors with their type."""
    text = " ".join(re.sub(r"^\[Errno \d+\] ", "", str(error)).split())
    if isinstance(error, ValueError | OSError | MemoryError | FloatingPointError) and text:
        return text
    return f"{type(error).__name__}: {text} (set MASTERS_DEBUG=1 for the traceback)"


def _stop(message: str, code: int = 1, told: bool = False) -> None:
    """Print a message and exit; ranks other than 0 stay silent if ``told``, as rank 0 has the same error.

    The message is empty if typer has printed the help instead.
    """
    rank = int(os.environ.get("RANK", 0))
    if message and not (rank and told):
        prefix = f"rank {rank}: " if rank else ""
        line = " ".join((prefix + message).split())
        print(
            f"masters: {line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + ' ...'}", file=sys.stderr
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
