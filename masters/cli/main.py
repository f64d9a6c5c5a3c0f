"""The shell command ``masters``; :mod:`masters_book.commands` adds those of the notebooks, book and studies.

A failure prints one line on stderr and exits with code 1, or 2 if the command line is wrong. Set
``MASTERS_DEBUG=1`` for the traceback.
"""

import os
import re
import shutil
import signal
import sys
from contextlib import nullcontext
from typing import Annotated

import typer

from masters.cli import distill as cli_distill
from masters.cli import responses as cli_responses
from masters.cli.data import data
from masters.cli.responses import ProfileName

LONGEST_LINE = 2000  # characters of an error message

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Mask the teacher, reinforce the student.",
)

OWN, PROFILE = "Your own models and data", "Responses and runs of a profile"

app.command(rich_help_panel=OWN)(cli_distill.distill)
app.command(rich_help_panel=OWN)(cli_distill.compare)
app.command(rich_help_panel=OWN)(cli_distill.chat)
app.add_typer(data, name="data", rich_help_panel=OWN)
app.command(rich_help_panel=PROFILE)(cli_responses.generate)
app.command(rich_help_panel=PROFILE)(cli_responses.judge)
app.command(rich_help_panel=PROFILE)(cli_responses.export)
app.add_typer(cli_responses.stored, name="responses", rich_help_panel=PROFILE)


@app.command(rich_help_panel=PROFILE)
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
