"""The shell commands about responses: ``masters generate | judge | export`` and ``masters responses ...``.

They take the same profiles as the notebooks and leave what the notebooks read.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from masters.runtime import progress

if TYPE_CHECKING:
    from masters.experiments.curriculum import WantedResponses
    from masters.experiments.lab import Lab

ProfileName = Annotated[str, typer.Argument(help="A folder of notebooks/params, such as smoke or mini.")]
ArmName = Annotated[str, typer.Option(help="Whose responses: an arm such as masters, clipped or mid_only.")]
ShardIndex = Annotated[int, typer.Option(help="Which share of the questions, from 0.")]
NumShards = Annotated[int, typer.Option(help="Into how many shares they are cut.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]

stored = typer.Typer(no_args_is_help=True, help="Look at the responses on disk.")


def generate(
    profile: ProfileName,
    arm: ArmName = "masters",
    shard_index: ShardIndex = 0,
    num_shards: NumShards = 1,
    ray: Annotated[
        str | None, typer.Option(help="A Ray cluster does all shares: local, auto or its address.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Generate the responses of an arm that are missing; stopped, it goes on where it was."""
    from masters.experiments import response_plan
    from masters.experiments.lab import Lab

    if ray and shard_index:
        raise ValueError("--ray does all shares; leave --shard-index out")
    lab = Lab(profile)
    pool = lab.pool if ray else response_plan.shard(lab.pool, shard_index, num_shards)
    wanted = response_plan.ResponsePlan.of_arm(lab, arm).responses
    _show_status(lab, wanted, pool)
    if not dry_run:
        _make(lab, wanted, pool, ray, num_shards)


def judge(
    profile: ProfileName,
    arm: ArmName = "masters",
    shard_index: ShardIndex = 0,
    num_shards: NumShards = 1,
    server: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server; else the profile's, else the rules.")
    ] = None,
    model: Annotated[str, typer.Option(help="The judge's name on that server.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Judge the responses of an arm, by rules or by a language model, generating what is missing first."""
    from masters.experiments import response_plan
    from masters.experiments.lab import Lab
    from masters.judges.llm import LLMJudge
    from masters.settings import LanguageJudge

    if server and not model:
        raise ValueError("--server needs --model, the judge's name on that server")
    lab = Lab(profile)
    if server:
        asked = LanguageJudge(server=server, model=model)
        lab = Lab(lab.profile.model_copy(update={"judge": asked}))
    pool = response_plan.shard(lab.pool, shard_index, num_shards)
    wanted = response_plan.ResponsePlan.of_arm(lab, arm).responses
    chosen = lab.judge_of("llm" if lab.profile.judge else "rule")
    if dry_run:
        _show_status(lab, wanted, pool)
        return
    _make(lab, wanted, pool)
    table = Table(title=f"judged by {chosen.name}", title_justify="left", title_style="bold")
    for column in ("source", "mask", "responses", "right", "without a verdict"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for what in wanted:
        verdicts = response_plan.make(lab, what, pool, chosen)["correct"]
        right = f"{100 * verdicts.astype(float).mean():.1f} %"
        unclear = str(int(verdicts.isna().sum()))
        table.add_row(what.model, f"{what.ratio:g}", str(len(verdicts)), right, unclear)
    Console().print(table)
    if isinstance(chosen, LLMJudge):
        print(chosen.usage())


def export(
    profile: ProfileName,
    model: Annotated[str, typer.Argument(help="student, mid or large.")],
    folder: Annotated[Path, typer.Argument(help="Where it goes; must not exist.")],
    ratio: Annotated[float, typer.Option(help="Mask ratio; 0 is the whole model.")] = 0.0,
) -> None:
    """Save a model, masked, as a folder that vLLM, SGLang and others can serve."""
    from masters.experiments.lab import Lab
    from masters.responses.masked import save_masked

    lab = Lab(profile)
    if model not in lab.profile.ladder:
        raise ValueError(f"no model {model!r} in {profile}; there are: {', '.join(lab.profile.ladder)}")
    _train(lab, [model])
    save_masked(lab.folder(model), ratio, folder)
    print(f"{model} at mask {ratio:g}: {folder}")


@stored.command()
def status(profile: ProfileName, arm: ArmName = "masters") -> None:
    """What is there of the responses of an arm, what is missing, and what that will cost."""
    from masters.experiments import response_plan
    from masters.experiments.lab import Lab

    lab = Lab(profile)
    wanted = response_plan.ResponsePlan.of_arm(lab, arm).responses
    _show_status(lab, wanted, lab.pool)
    for what in wanted:
        for mark, count in sorted(response_plan.marks(lab, what).items()):
            print(f"{what.model} at mask {what.ratio:g}: {count} {mark}")


@stored.command()
def verify() -> None:
    """Read every shard on disk and name those that are damaged; exit code 1 if there are any."""
    from masters.responses.store import all_stores

    stores, found = all_stores(), 0
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
    from masters.experiments import response_plan
    from masters.experiments.lab import Lab
    from masters.runtime.files import write_atomic

    lab = Lab(profile)
    questions = lab.questions("train")
    place = questions.position()
    if place.get(question) not in lab.pool:
        some = ", ".join(questions.table["id"].iloc[lab.pool[:3]])
        raise ValueError(f"no question {question!r} in the pool of {profile}; there are {some} and others")
    about = questions.table.iloc[place[question]]
    table = Table(title=escape(f"{about['question']} ({about['answer']})"), title_justify="left")
    for column in ("source", "mask", "index", "response", "right", "log-probability", "mark"):
        table.add_column(column)
    for what in response_plan.ResponsePlan.of_arm(lab, arm).responses:
        if not lab.is_trained(what.model):
            continue
        store = lab.store(what.model, what.ratio, what.choice)
        stored_rows = store.read([about["content"]], what.n, lab.judge)
        for _, row in stored_rows.sort_values("index").iterrows():
            cells = (what.model, f"{what.ratio:g}", str(row["index"]), escape(row["text"]))
            right = {1: "yes", 0: "no"}.get(row["correct"], "?")
            logprob = "?" if row["logprobs"] is None else f"{row['logprobs'].sum():.1f}"
            table.add_row(*cells, right, logprob, row["mark"])
    if not table.row_count:
        raise ValueError(f"no responses to {question} yet; run `masters generate {profile} --arm {arm}`")
    Console().print(table)
    path = image or Path(f"{question.replace('/', '_')}.png")
    write_atomic(path, questions.image_bytes(place[question]))
    print(f"picture: {path}")


def _show_status(lab: "Lab", wanted: "Sequence[WantedResponses]", pool: list[int]) -> None:
    from masters.experiments import response_plan

    title = f"responses to {len(pool)} questions"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.caption = "KiB and minutes as the stored ones took; ? before there are any"
    table.add_column("source")
    for column in ("mask", "wanted", "there", "missing", "KiB there", "KiB to come", "minutes to come"):
        table.add_column(column, justify="right")
    for what in wanted:
        found = response_plan.status(lab, what, pool)
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


def _train(lab: "Lab", models: list[str]) -> None:
    if not all(lab.is_trained(model) for model in models):
        minutes = lab.profile.minutes.get("1_tasks_and_models")
        print(f"training the ladder first, up to {minutes or '?'} minutes", file=sys.stderr, flush=True)
        for model in models:
            lab.folder(model)


def _make(
    lab: "Lab", wanted: "Sequence[WantedResponses]", pool: list[int], ray: str | None = None, shares: int = 1
) -> None:
    from masters.experiments import response_plan
    from masters.experiments.cluster import make_on_ray

    _train(lab, [what.model for what in wanted])
    missing = [what for what in wanted if response_plan.status(lab, what, pool).missing]
    if missing:
        with _watched(lab, missing, pool):
            if ray:
                make_on_ray(lab, missing, pool, shares, ray)
            else:
                response_plan.make_all(lab, missing, pool)


@contextmanager
def _watched(lab: "Lab", wanted: "Sequence[WantedResponses]", pool: list[int]) -> Iterator[None]:
    """A bar an author, of what is on disk, whoever wrote it; what is left is told after the first shard."""
    from masters.experiments import response_plan

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    told: set[WantedResponses] = set()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        names = {what: f"{what.model} at mask {what.ratio:g}" for what in wanted}
        tasks = {what: bar.add_task(name, rate="") for what, name in names.items()}

        def look() -> None:
            for what, task in tasks.items():
                found = response_plan.status(lab, what, pool)
                bar.update(task, completed=found.there, total=found.there + found.missing)
                if speed := bar.tasks[task].speed:
                    bar.update(task, rate=f"{speed:.0f}/s")
                if found.missing and found.missing_seconds and found.missing_size and what not in told:
                    told.add(what)
                    minutes = found.missing_seconds / 60 / lab.writers
                    rest = f"{minutes:.1f} minutes, {found.missing_size / 2**20:.1f} MiB at this rate"
                    bar.console.print(f"{names[what]}: {found.missing} to come, {rest}")

        try:
            with progress.repeatedly(look, 1.0):  # a store of millions takes a second to look at
                yield
        finally:
            look()
