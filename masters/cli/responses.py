"""Commands for responses: ``masters generate | judge | export`` and ``masters responses ...``.

They take a profile of the notebooks or a run file of ``masters distill``, which read the files that these
commands write.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from masters.runtime import progress

if TYPE_CHECKING:
    from masters.experiments.lab import Lab
    from masters.experiments.response_plan import Asked
    from masters.settings import LanguageJudge

ProfileName = Annotated[str, typer.Argument(help="Folder of notebooks/params, such as smoke or mini.")]
ProfileOrRun = Annotated[
    str,
    typer.Argument(
        metavar="PROFILE|RUN.YAML", help="Folder of notebooks/params, such as mini, or a run file."
    ),
]
ArmName = Annotated[
    str | None,
    typer.Option(help="Arm of the profile that reads the responses, such as clipped. Default: masters."),
]
ShardIndex = Annotated[int, typer.Option(min=0, max=99_999, help="Shard of the questions, counted from 0.")]
NumShards = Annotated[int, typer.Option(min=1, max=100_000, help="Number of shards.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what is missing, then exit.")]

stored = typer.Typer(no_args_is_help=True, help="Inspect the responses on disk.")


def generate(
    profile: ProfileOrRun,
    arm: ArmName = None,
    shard_index: ShardIndex = 0,
    num_shards: NumShards = 1,
    ray: Annotated[
        str | None, typer.Option(help="Ray cluster that generates all shards: local, auto or its address.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Generate the missing responses of an arm. After a stop, the same command continues."""
    if ray and shard_index:
        raise ValueError("--ray generates all shards: drop --shard-index")
    lab, asked = _asked(profile, arm)
    if not ray:
        asked = _shard(asked, shard_index, num_shards)
    _show_status(lab, asked)
    if not dry_run:
        _make(lab, asked, ray, num_shards)


def judge(
    profile: ProfileOrRun,
    arm: ArmName = None,
    shard_index: ShardIndex = 0,
    num_shards: NumShards = 1,
    server: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible server. Default: the profile's judge, else the rules."),
    ] = None,
    model: Annotated[str, typer.Option(help="Judge's name on that server.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Judge the responses of an arm by rule or language model, after generating missing ones."""
    from masters.judges.llm import LLMJudge
    from masters.settings import LanguageJudge

    if server and not model:
        raise ValueError("--server needs --model, the judge's name on that server")
    named = {"server": server, "model": model}
    lab, asked = _asked(
        profile, arm, LanguageJudge.checked(named, Path("command line"), "judge") if server else None
    )
    asked = _shard(asked, shard_index, num_shards)
    judge_name = "llm" if lab.profile.judge else "rule"
    chosen = lab.judge_of(judge_name)
    if dry_run:
        _show_status(lab, asked)
        return
    _make(lab, asked)
    table = new_table(
        f"judged by {chosen.name}", ["model"], ["mask ratio", "responses", "correct", "no verdict"]
    )
    for what, questions in asked.items():
        responses, judged, right = 0, 0, 0.0
        for frame in lab.judged(replace(what, judge=judge_name), questions):
            verdicts = frame["correct"].astype(float)
            responses, judged = responses + len(verdicts), judged + int(verdicts.count())
            right += float(verdicts.sum())
        correct = f"{100 * right / judged:.1f} %" if judged else ""
        table.add_row(what.model, f"{what.ratio:g}", str(responses), correct, str(responses - judged))
    Console().print(table)
    if isinstance(chosen, LLMJudge):
        print(chosen.usage())


def export(
    profile: ProfileOrRun,
    model: Annotated[
        str,
        typer.Argument(
            help="student, mid or large; of a run file student, and large or teacher1, teacher2 ..."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Target folder, which must not exist.")],
    ratio: Annotated[float, typer.Option(min=0, max=1, help="Mask ratio; 0 saves the unmasked model.")] = 0.0,
) -> None:
    """Save a masked model as a folder that vLLM, SGLang and other servers can load."""
    from masters.distillation.run_file import load_run_file
    from masters.experiments.lab import Lab
    from masters.responses.engines.vllm import save_masked

    if _is_run_file(profile):
        run = load_run_file(profile)
        lab = Lab(run.profile(run.training.batch, 1))  # which does not depend on the data otherwise
    else:
        lab = Lab(profile)
    if model not in lab.profile.ladder:
        raise ValueError(f"no model {model!r} in {profile}; there are: {', '.join(lab.profile.ladder)}")
    _train(lab, [model])
    save_masked(lab.folder(model), ratio, folder)
    print(f"{model} at mask ratio {ratio:g}: {folder}")


@stored.command()
def status(profile: ProfileOrRun, arm: ArmName = None) -> None:
    """Show which responses of an arm exist, which are missing, and what the missing ones cost."""
    from masters.experiments import response_plan

    lab, asked = _asked(profile, arm)
    _show_status(lab, asked)
    for what in asked:
        for mark, count in sorted(response_plan.marks(lab, what).items()):
            print(f"{what.model} at mask ratio {what.ratio:g}: {count} {mark}")


@stored.command()
def verify(
    run: Annotated[Path | None, typer.Argument(help="Run file. Default: the stores of all profiles.")] = None,
) -> None:
    """Read every shard on disk and name the damaged ones. Exit with code 1 if there are any."""
    from masters.distillation.run_file import load_run_file
    from masters.responses.store import all_stores

    if run is not None:
        os.environ.setdefault("MASTERS_CACHE", str(load_run_file(run).output / "responses"))
    stores, found = all_stores(), 0
    for store in stores:
        for damage in store.verify():
            found += 1
            held = ""
            if damage.responses is not None:
                held = f"; it held {damage.responses} responses of {store.source} at mask ratio "
                held += f"{store.spec.ratio:g} to {damage.questions} questions"
            print(f"{damage.path}: {damage.reason}{held}")
    if found:
        raise ValueError(
            f"{found} damaged shards: delete them and run `masters generate`, which regenerates only these"
        )
    print(f"{len(stores)} stores, nothing damaged")


@stored.command()
def show(
    profile: ProfileOrRun,
    question: Annotated[str, typer.Argument(help="Id of a training question.")],
    arm: ArmName = None,
    image: Annotated[
        Path | None, typer.Option(help="File for the question's image. Default: ID.png.")
    ] = None,
) -> None:
    """Print all responses to a question and save its image."""
    from masters.runtime.files import write_atomic

    lab, asked = _asked(profile, arm)
    questions = lab.questions("train")
    place = questions.position()
    if place.get(question) not in lab.pool:
        some = ", ".join(questions.table["id"].iloc[lab.pool[:3]])
        raise ValueError(f"no question {question!r} in the pool of {profile}: use an id such as {some}")
    about = questions.table.iloc[place[question]]
    names = ["model", "mask ratio", "index", "response", "correct", "log-probability, nats", "mark"]
    table = new_table(escape(f"{about['question']} ({about['answer']})"), names)
    for what in asked:
        if not lab.is_trained(what.model):
            continue
        store = lab.store(what.model, what.ratio, what.choice)
        rows = store.read([about["content"]], what.n)
        rows["correct"] = store.verdicts(rows, lab.judge_of("rule"))
        for _, row in rows.sort_values("index").iterrows():
            correct = {1: "yes", 0: "no"}.get(row["correct"], "?")
            logprob = "?" if row["logprobs"] is None else f"{row['logprobs'].sum():.1f}"
            cells = (what.model, f"{what.ratio:g}", str(row["index"]), escape(row["text"]))
            table.add_row(*cells, correct, logprob, row["mark"])
    if not table.row_count:
        raise ValueError(f"no responses to {question} yet: run `masters generate {profile}` first")
    Console().print(table)
    for number, file in enumerate(questions.images(place[question])):
        path = image or Path(f"{question.replace('/', '_')}.png")
        path = path.with_stem(f"{path.stem}-{number + 1}") if number else path
        write_atomic(path, file)
        print(f"image: {path}")


def new_table(title: str, left: Sequence[str], right: Sequence[str] = (), footer: bool = False) -> Table:
    """Return an empty table whose columns are aligned ``left``, then ``right``."""
    table = Table(title=title, title_justify="left", title_style="bold", show_footer=footer)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _is_run_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml")


def _asked(profile: str, arm: str | None, judge: "LanguageJudge | None" = None) -> "tuple[Lab, Asked]":
    """Return the assets of a profile or run file, and what an arm asks; with a judge in place of its own."""
    from masters.distillation.run import responses_of
    from masters.experiments.lab import Lab
    from masters.experiments.response_plan import ResponsePlan

    asked: Asked
    if not _is_run_file(profile):
        lab = Lab(profile)
        asked = ResponsePlan.of_arm(lab, arm or "masters").responses
    elif arm is None:
        lab, asked = responses_of(profile)
    else:
        raise ValueError(f"--arm is for profiles: {profile} names its method itself")
    return (Lab(lab.profile.model_copy(update={"judge": judge})) if judge else lab), asked


def _shard(asked: "Asked", shard_index: int, num_shards: int) -> "Asked":
    from masters.experiments.response_plan import shard

    return {what: shard(questions, shard_index, num_shards) for what, questions in asked.items()}


def _show_status(lab: "Lab", asked: "Asked") -> None:
    from masters.experiments import response_plan
    from masters.objective.topk import storage_bytes

    counts = ["mask ratio", "wanted", "stored", "missing", "KiB stored", "KiB missing", "minutes missing"]
    questions = len(set().union(*asked.values()))
    table = new_table(f"responses to {questions} questions", ["model"], counts)
    distillation, longest = lab.profile.distillation, lab.profile.sampling.max_new_tokens
    most = sum(what.n * len(questions) for what, questions in asked.items()) * longest
    of_scores = storage_bytes(most, len(lab.processor.tokenizer), distillation.top_k_logprobs)
    table.caption = "missing KiB and minutes are estimated from stored responses; ? where none are stored"
    if distillation.cache_teacher:
        table.caption += f"\nlog-probabilities of a model at all: up to {of_scores / 2**30:,.1f} GiB on disk"
    for what, places in asked.items():
        found = response_plan.status(lab, what, places)
        size, seconds = found.missing_size, found.missing_seconds
        numbers = [found.there + found.missing, found.there, found.missing, f"{found.size / 2**10:.0f}"]
        left = "?" if size is None else f"{size / 2**10:.0f}"
        minutes = "?" if seconds is None else f"{seconds / 60:.1f}"
        table.add_row(what.model, f"{what.ratio:g}", *map(str, numbers), left, minutes)
    Console().print(table)


def _train(lab: "Lab", models: list[str]) -> None:
    if not all(lab.is_trained(model) for model in models):
        minutes = lab.profile.minutes.get("1_tasks_and_models")
        print(f"training the ladder first, up to {minutes or '?'} minutes", file=sys.stderr, flush=True)
        for model in models:
            lab.folder(model)


def _make(lab: "Lab", asked: "Asked", ray: str | None = None, shards: int = 1) -> None:
    from masters.cli.cluster import make_on_ray
    from masters.experiments import response_plan

    _train(lab, [what.model for what in asked])
    missing = {
        what: questions
        for what, questions in asked.items()
        if response_plan.status(lab, what, questions).missing
    }
    if missing:
        with _watched(lab, missing):
            if ray:
                make_on_ray(lab, missing, shards, ray)
            else:
                response_plan.make_all(lab, missing)


@contextmanager
def _watched(lab: "Lab", asked: "Asked") -> Iterator[None]:
    """Show one progress bar per model from what is on disk, so that work of other machines counts too."""
    from masters.experiments import response_plan

    left = TextColumn("{task.fields[left]}")
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, left, console=Console(stderr=True)) as bar:
        tasks = [
            (what, questions, bar.add_task(f"{what.model} at mask ratio {what.ratio:g}", left=""))
            for what, questions in asked.items()
        ]

        def look() -> None:
            for what, questions, task in tasks:
                found = response_plan.status(lab, what, questions)
                size = f"{found.missing_size / 2**20:.1f} MiB left" if found.missing_size else ""
                bar.update(task, completed=found.there, total=found.there + found.missing, left=size)

        try:
            with progress.repeatedly(look, 1.0):  # seconds; counting millions of responses takes one
                yield
        finally:
            look()
