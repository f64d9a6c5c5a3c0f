"""The shell command ``masters``: what the Makefile calls. A failure is one line on stderr, exit code 1.

Set ``MASTERS_DEBUG=1`` to see the traceback behind that line.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from masters.experiments import Lab
    from masters.generation import Wanted
    from masters.responses import Judge

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Mask the teacher, reinforce the student: the steps behind `make reproduce`.",
)

stored = typer.Typer(no_args_is_help=True, help="Look at the responses on disk.")
app.add_typer(stored, name="responses")

ProfileName = Annotated[str, typer.Argument(help="A folder of notebooks/params, such as smoke or mini.")]

ArmName = Annotated[str, typer.Option(help="Whose responses: an arm such as masters, clipped or mid_only.")]
ShardIndex = Annotated[int, typer.Option(help="Which share of the questions, from 0.")]
NumShards = Annotated[int, typer.Option(help="Into how many shares they are cut.")]


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
def notebook(
    name: Annotated[str, typer.Argument(help="Such as 2_masking_ablations.")],
    profile: Annotated[str, typer.Option(help="A folder of notebooks/params.")] = "mini",
    output: Annotated[Path | None, typer.Option(help="Default: build/PROFILE/NAME.ipynb.")] = None,
) -> None:
    """Execute one notebook at a profile; the output appears whole or not at all."""
    from masters.files import ROOT
    from masters.reproduce import run_notebook

    run_notebook(name, profile, output or ROOT / "build" / profile / f"{name}.ipynb")


@app.command()
def refresh(name: Annotated[str, typer.Argument(help="Such as 2_masking_ablations.")]) -> None:
    """Run a notebook in place at its defaults and keep its outputs."""
    from masters import reproduce

    changed = reproduce.refresh(name)
    print("  outputs changed" if changed else "  outputs as they were")


@app.command()
def book(profile: ProfileName) -> None:
    """Build the book from the executed notebooks of a profile."""
    from masters.book import build

    print(f"building the book for profile {profile}", flush=True)
    build(profile)


@app.command()
def claims(profile: ProfileName) -> None:
    """Print the claims of the paper with this profile's figures and verdicts."""
    from masters.book import read_claims
    from masters.files import ROOT

    colours = {"supported": "green", "not supported": "red", "reversed": "magenta", "undecided": "yellow"}
    table = Table(title=f"the paper's claims at profile {profile}", title_justify="left", title_style="bold")
    for column in ("claim", ""):
        table.add_column(column)
    for column in ("paper", "ours", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for claim in read_claims(ROOT / "build" / profile / "claims.csv"):
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


@app.command()
def generate(
    profile: ProfileName,
    arm: ArmName = "masters",
    shard_index: ShardIndex = 0,
    num_shards: NumShards = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
) -> None:
    """Generate the responses of an arm that are missing; stopped, it goes on where it was."""
    from masters import generation
    from masters.experiments import Lab

    lab = Lab(profile)
    pool = generation.share(lab.pool, shard_index, num_shards)
    _show_status(lab, generation.wanted(lab, arm), pool)
    if dry_run:
        return
    for what in generation.wanted(lab, arm):
        _make(lab, what, pool)


@app.command()
def judge(
    profile: ProfileName,
    arm: ArmName = "masters",
    shard_index: ShardIndex = 0,
    num_shards: NumShards = 1,
    server: Annotated[str | None, typer.Option(help="An OpenAI-compatible server; else the rules.")] = None,
    model: Annotated[str, typer.Option(help="The judge's name on that server.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
) -> None:
    """Judge the responses of an arm, by rules or by a language model, generating what is missing first."""
    from masters import generation
    from masters.experiments import Lab
    from masters.judges import LLMJudge, RuleJudge

    if server and not model:
        raise ValueError("--server needs --model, the judge's name on that server")
    lab = Lab(profile)
    pool = generation.share(lab.pool, shard_index, num_shards)
    chosen = LLMJudge(server, model, os.environ.get("OPENAI_API_KEY")) if server else RuleJudge()
    if dry_run:
        _show_status(lab, generation.wanted(lab, arm), pool)
        return
    table = Table(title=f"judged by {chosen.name}", title_justify="left", title_style="bold")
    for column in ("source", "mask", "responses", "right", "without a verdict"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for what in generation.wanted(lab, arm):
        verdicts = _make(lab, what, pool, chosen)["correct"]
        right = f"{100 * verdicts.astype(float).mean():.1f} %"
        unclear = str(int(verdicts.isna().sum()))
        table.add_row(what.model, f"{what.ratio:g}", str(len(verdicts)), right, unclear)
    Console().print(table)


@stored.command()
def status(profile: ProfileName, arm: ArmName = "masters") -> None:
    """What is there of the responses of an arm, what is missing, and what that will cost."""
    from masters import generation
    from masters.experiments import Lab

    lab = Lab(profile)
    _show_status(lab, generation.wanted(lab, arm), lab.pool)
    for what in generation.wanted(lab, arm):
        for mark, count in sorted(generation.marks(lab, what).items()):
            print(f"{what.model} at mask {what.ratio:g}: {count} {mark}")


@stored.command()
def verify() -> None:
    """Read every shard on disk and name those that are damaged; exit code 1 if there are any."""
    from masters import generation

    stores, found = generation.all_stores(), 0
    for store in stores:
        for damage in store.verify():
            found += 1
            held = "" if damage.responses is None else f"{damage.responses} responses of {damage.questions} "
            held = f"it held {held}questions of {store.source}, mask {store.spec.ratio:g}" if held else ""
            print(f"{damage.path}: {damage.reason}; {held}")
    if found:
        raise ValueError(f"{found} damaged; delete them and run `masters generate`: only they are made again")
    print(f"{len(stores)} stores, nothing damaged")


@stored.command()
def show(
    profile: ProfileName,
    question: Annotated[str, typer.Argument(help="The id of a training question.")],
    arm: ArmName = "masters",
    image: Annotated[Path | None, typer.Option(help="Where its picture goes; default: ID.png.")] = None,
) -> None:
    """Print all responses to a question as a table and write its picture to a file."""
    from masters import generation
    from masters.experiments import Lab
    from masters.tasks import load_task

    lab = Lab(profile)
    place = lab.questions("train").position()
    if place.get(question) not in lab.pool:
        some = ", ".join(lab.questions("train").table["id"].iloc[lab.pool[:3]])
        raise ValueError(f"no question {question!r} in the pool of {profile}; there are {some} and others")
    about = lab.questions("train").table.iloc[place[question]]
    table = Table(title=escape(f"{about['question']} ({about['answer']})"), title_justify="left")
    for column in ("source", "mask", "index", "response", "right", "log-probability", "mark"):
        table.add_column(column)
    for what in generation.wanted(lab, arm):
        if not lab.is_trained(what.model):
            continue
        stored_rows = generation.store_of(lab, what).read([about["content"]], what.n, lab.judge)
        for _, row in stored_rows.sort_values("index").iterrows():
            cells = (what.model, f"{what.ratio:g}", str(row["index"]), escape(row["text"]))
            right = {1: "yes", 0: "no"}.get(row["correct"], "?")
            table.add_row(*cells, right, f"{row['logprobs'].sum():.1f}", row["mark"])
    if not table.row_count:
        raise ValueError(f"no responses to {question} yet; run `masters generate {profile} --arm {arm}`")
    Console().print(table)
    rows = load_task(about["task"], "train", lab.profile.train_questions)
    picture = rows[list(rows["id"]).index(question)]["image"]
    path = image or Path(f"{question.replace('/', '_')}.png")
    picture.save(path)
    print(f"picture: {path}")


def _show_status(lab: "Lab", wanted: "list[Wanted]", pool: list[int]) -> None:
    from masters import generation

    title = f"responses to {len(pool)} questions"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.caption = "KiB and minutes as the stored ones took; ? before there are any"
    table.add_column("source")
    for column in ("mask", "wanted", "there", "missing", "KiB there", "KiB to come", "minutes to come"):
        table.add_column(column, justify="right")
    for what in wanted:
        found = generation.status(lab, what, pool)
        size, seconds = found.missing_size, found.missing_seconds
        table.add_row(
            what.model,
            f"{what.ratio:g}",
            str(found.there + found.missing),
            str(found.there),
            str(found.missing),
            f"{found.size / 2**10:.0f}",
            "?" if size is None else f"{size / 2**10:.0f}",
            "?" if seconds is None else f"{seconds / 60:.1f}",
        )
    Console().print(table)


def _make(lab: "Lab", what: "Wanted", pool: list[int], judge: "Judge | None" = None) -> "pd.DataFrame":
    from masters import generation

    if not lab.is_trained(what.model):
        minutes = lab.profile.minutes.get("1_tasks_and_models")
        print(f"training the ladder first, up to {minutes or '?'} minutes", file=sys.stderr, flush=True)
        lab.folder(what.model)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(
            f"{what.model} at mask {what.ratio:g}", total=None, visible=False
        )  # nothing may be missing

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        return generation.make(lab, what, pool, judge, progress)


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
        _stop(text)
    sys.exit(code if isinstance(code, int) else 0)


def _line(error: Exception) -> str:
    """One line: the message of a foreseen error, the type as well for one that is not."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError) and text:
        return text
    return f"{type(error).__name__}: {text} (MASTERS_DEBUG=1 shows where)"


def _stop(message: str, code: int = 1) -> None:
    print(f"masters: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
