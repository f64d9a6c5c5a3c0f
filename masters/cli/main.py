"""The shell command ``masters``: what the Makefile calls. A failure is one line on stderr, exit code 1.

Set ``MASTERS_DEBUG=1`` to see the traceback behind that line.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from masters.cli import responses as cli_responses
from masters.cli.responses import ProfileName

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Mask the teacher, reinforce the student: the steps behind `make reproduce`.",
)

app.command()(cli_responses.generate)
app.command()(cli_responses.judge)
app.command()(cli_responses.export)
app.add_typer(cli_responses.stored, name="responses")


@app.command()
def plan(profile: ProfileName) -> None:
    """Check every parameter of a profile and say what will run, for how long, and what it can show."""
    from masters.settings import NOTEBOOKS, load_profile, notebook_parameters

    settings = load_profile(profile)
    for notebook in NOTEBOOKS:
        notebook_parameters(profile, notebook)
    table = Table(title=f"profile {profile}", title_justify="left", title_style="bold", show_footer=True)
    table.add_column("notebook", footer="together, when nothing is cached")
    table.add_column("minutes expected", justify="right", footer=f"{sum(settings.minutes.values()):g}")
    for notebook in NOTEBOOKS:
        minutes = settings.minutes.get(notebook)
        table.add_row(notebook, "" if minutes is None else f"{minutes:g}")
    console = Console()
    console.print(table)
    console.print(f"[bold]It can show[/] {escape(settings.shows)}")
    console.print(f"[bold]It cannot show[/] {escape(settings.cannot_show)}\n")


@app.command()
def train(
    profile: ProfileName,
    arm: Annotated[
        str, typer.Argument(help="A name of masters.experiments.arms, such as masters or r_max=0.4.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the questions.")] = 0,
) -> None:
    """Train and evaluate one arm; behind torchrun or accelerate launch on all processes that they start."""
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
    name: Annotated[str, typer.Argument(help="Such as 2_masking_ablations.")],
    profile: Annotated[str, typer.Option(help="A folder of notebooks/params.")] = "mini",
    output: Annotated[Path | None, typer.Option(help="Default: build/PROFILE/NAME.ipynb.")] = None,
) -> None:
    """Execute one notebook at a profile; the output appears whole or not at all."""
    from masters.report.notebooks import run_notebook
    from masters.runtime.files import ROOT

    run_notebook(name, profile, output or ROOT / "build" / profile / f"{name}.ipynb")


@app.command()
def refresh(name: Annotated[str, typer.Argument(help="Such as 2_masking_ablations.")]) -> None:
    """Run a notebook in place at its defaults and keep its outputs."""
    from masters.report import notebooks as reproduce

    changed = reproduce.refresh(name)
    print("  outputs changed" if changed else "  outputs as they were")


@app.command()
def book(profile: ProfileName) -> None:
    """Build the book from the executed notebooks of a profile."""
    from masters.report.book import build

    print(f"building the book for profile {profile}", flush=True)
    build(profile)


@app.command()
def claims(profile: ProfileName) -> None:
    """Print the claims of the paper with this profile's figures and verdicts."""
    from masters.runtime.files import ROOT

    _print_claims(f"the paper's claims at profile {profile}", ROOT / "build" / profile / "claims.csv")


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="A plan: notebooks/params/NAME.yaml.")] = "study",
    replicates: Annotated[str, typer.Option(help="Such as 3 or 0-4; all when left out.")] = "",
    processes: Annotated[int | None, typer.Option(min=1, help="Side by side.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is missing, and do nothing.")] = False,
) -> None:
    """Do what is missing of the study, as far as you let it; what is done stays in data/results/NAME."""
    from masters.runtime import progress
    from masters.runtime.files import STUDY
    from masters.study.study import Study

    asked = _numbers(replicates)
    plan = Study(name, STUDY.with_name(name), processes)
    if asked and max(asked) >= plan.plan.seeds:
        raise ValueError(f"there is no replicate {max(asked)}: the plan has 0 to {plan.plan.seeds - 1}")
    minutes, missing, untried = plan.minutes(asked), plan.missing(asked), plan.untried()
    table = Table(title=f"what is missing of the study {name}", title_justify="left", title_style="bold")
    for column in ("", "there", "missing"):
        table.add_column(column, justify="right" if column else "left")
    table.add_column("minutes", justify="right")
    table.add_row("ladders to train", "", "", f"{minutes['ladder']:.0f}")
    table.add_row("trials (validation)", str(len(plan.tried)), str(len(untried)), f"{minutes['trials']:.0f}")
    there = plan.runs.groupby("replicate").size()
    each = minutes["runs"] / max(1, sum(map(len, missing.values())))
    for replicate in range(plan.plan.seeds) if asked is None else asked:
        done, lacking = there.get(replicate, 0), len(missing.get(replicate, []))
        table.add_row(f"runs of replicate {replicate}", str(done), str(lacking), f"{lacking * each:.0f}")
    console = Console()
    console.print(table)
    console.print(
        f"About {sum(minutes.values()):.0f} minutes with {plan.profile.processes} processes, generation of "
        "the responses apart. Stop it when you like: the same command goes on from there."
    )
    if uncertain := plan.uncertain(asked):
        console.print(
            f"The models of these replicates are not here: {', '.join(map(str, uncertain))}. Where they come "
            "out otherwise than before, as on another machine, all runs of the replicate are made anew, "
            "which is not in these minutes."
        )
    console.print()
    if dry_run:
        return
    with progress.shown():
        plan.run(asked)
    plan.judge()
    _print_claims(f"the paper's claims in the study {name}", plan.folder / "claims.csv")


def _numbers(text: str) -> list[int] | None:
    """``3`` or ``0-4`` as numbers; None for nothing."""
    import re

    if not text:
        return None
    if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", text)) or int(match[1]) > int(match[2] or match[1]):
        raise ValueError(f"replicates {text!r} is neither a number nor a range such as 0-4")
    return list(range(int(match[1]), int(match[2] or match[1]) + 1))


def _print_claims(title: str, path: Path) -> None:
    from masters.claims.table import read_claims

    colours = {"supported": "green", "not supported": "red", "reversed": "magenta", "undecided": "yellow"}
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("claim", ""):
        table.add_column(column)
    for column in ("paper", "ours", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for claim in read_claims(path):
        colour = colours.get(claim.verdict, "dim")
        table.add_row(
            claim.id,
            escape(claim.statement),
            claim.paper,
            claim.ours,
            claim.interval,
            f"[{colour}]{claim.verdict}[/]",
        )
    Console().print(table)


def main() -> None:
    """The entry point: any failure becomes one line and exit code 1."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        _stop("interrupted; finished work is kept, the same command goes on from there", 130)
    except Exception as error:
        if os.environ.get("MASTERS_DEBUG"):
            raise
        # Usage errors of the command line carry their own wording.
        text = error.format_message() if hasattr(error, "format_message") else _line(error)
        _stop(text, told=isinstance(error, FloatingPointError | ValueError))
    sys.exit(code if isinstance(code, int) else 0)


def _line(error: Exception) -> str:
    """One line: the message of a foreseen error, the type as well for one that is not."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | MemoryError | FloatingPointError) and text:
        return text
    return f"{type(error).__name__}: {text} (MASTERS_DEBUG=1 shows where)"


def _stop(message: str, code: int = 1, told: bool = False) -> None:
    rank = int(os.environ.get("RANK", 0))
    if rank and told:  # by rank 0, as such errors meet all ranks
        sys.exit(code)
    message = f"rank {rank}: {message}" if rank else message
    print(f"masters: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
