"""Before anything starts: read the data, and check models, labels and settings against each other."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from masters.distillation.run_file import RunFile
from masters.distillation.upload import check_upload
from masters.experiments.arms import LABELS, RunSpec
from masters.experiments.curriculum import all_stages
from masters.experiments.evaluation import check_labels
from masters.experiments.lab import Lab
from masters.experiments.response_plan import ResponsePlan
from masters.experiments.run import budget_of
from masters.judges import Judge
from masters.masking.schedule import MaskSchedule
from masters.models.compatibility import context
from masters.own_data.question_set import OwnQuestions, load_own_data
from masters.runtime import distributed

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A checked run: its file, data, assets and spec."""

    run: RunFile
    own: OwnQuestions
    lab: Lab
    spec: RunSpec

    @property
    def evaluation(self) -> str | None:
        """The split of the evaluation: test if there is one, else eval; None without either."""
        return next((split for split in ("test", "eval") if split in self.own.splits), None)

    @property
    def judge(self) -> Judge:
        """The judge of the reward, and of the evaluation."""
        return self.lab.judge_of("llm" if self.lab.profile.judge else "rule")

    @property
    def plan(self) -> ResponsePlan:
        """What the run reads."""
        pool, cached = self.lab.pool, self.lab.profile.distillation.cache_teacher
        return ResponsePlan.alone(self.spec, self.run.training.seed, pool, cached)

    @property
    def teachers(self) -> list[str]:
        """The teachers that the method uses, as the file names them, in order."""
        named = dict(zip(self.run.rungs, self.run.teachers, strict=True))
        return [named[rung].path for rung in self.spec.teachers]


def prepare_run(run: RunFile, say: Say, encoded: bool = True) -> Prepared:
    """Read the data and check models, labels and settings against each other.

    Args:
        encoded: encode every row, so that those that a processor refuses do not count; takes long.

    Raises:
        ValueError: a parameter, a model or the data is wrong.
    """
    if run.training.push_to_hub and distributed.rank() == 0:
        check_upload(run.training.push_to_hub)
    own = load_own_data(run.data, run.folder)
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in own.splits.items())
    say(f"data: {counts} questions; {len(own.skipped):,} rows skipped")
    for problem in own.problems:
        say(f"data: {problem}")
    if "eval" not in own.splits and "test" not in own.splits:
        say("no evaluation: set data.eval to a file or to {split_from_train: 500}")
    lab, spec = _settled(run, own, len(own.splits["train"]))
    budget = budget_of(lab.profile, spec, run.training.seed)
    budget.arguments(run.output)  # refuses unknown names
    budget.on_each_process(run.training.accumulate)
    for split, rows in own.splits.items() if lab.profile.judge is None else ():
        labels = rows.select_columns(["id", "question", "answer"]).to_pandas()
        if unreachable := check_labels(lab.judge, labels):
            say(
                f"attention: the labels of {len(unreachable)} of {len(rows)} rows of {split} score 0 with "
                f"reward {run.reward} if a response repeats them, as that of {unreachable[0]}"
            )
    if encoded and (accepted := len(lab.questions("train"))) < len(own.splits["train"]):
        lab, spec = _settled(run, own, accepted)
    teachers = ", ".join(f"teacher {teacher.path}" for teacher in run.teachers) or "no teacher"
    vocabulary = len(lab.processor.tokenizer)
    say(f"student {run.student}, {teachers}, vocabulary {vocabulary:,}, {spec.steps:,} steps")
    ratios = MaskSchedule(spec.r_max, spec.r_step).ratios
    if spec.teachers and len(all_stages(spec)) < len(spec.teachers) * len(ratios):
        say(
            f"attention: {spec.steps} steps are too few for {len(ratios)} mask ratios of each teacher: some "
            "of them, and the whole teacher, are left out; raise training.epochs or mask.step"
        )
    return Prepared(run, own, lab, spec)


def _settled(run: RunFile, own: OwnQuestions, questions: int) -> tuple[Lab, RunSpec]:
    """Return assets and spec of a run on a number of training questions."""
    train = own.splits["train"]
    evaluated = max((len(rows) for split, rows in own.splits.items() if split != "train"), default=0)
    profile = run.profile(len(train), evaluated, questions)
    labeled = sum(answer != "" for answer in train["answer"])
    spec = run.spec(profile, labeled > 0)
    if spec.learn_from in LABELS and labeled < len(train):
        raise ValueError(
            f"method {run.method!r} learns from answers, and {len(train) - labeled} training questions have "
            "none: remove these rows or choose a method that learns from responses, such as masters"
        )
    lab = Lab(profile)
    vocabulary = len(lab.processor.tokenizer)  # reads every processor: student and teachers must agree
    if (profile.distillation.top_k_logprobs or 0) < vocabulary:
        return lab, spec
    everything = profile.distillation.model_copy(update={"top_k_logprobs": None})
    return Lab(profile.model_copy(update={"distillation": everything})), spec


def check_lengths(prepared: Prepared) -> None:
    """Check that every prompt and a response to it fit the models; a ``ValueError`` names what does not."""
    lab = prepared.lab
    limit = min(context(lab.skeleton(name)) for name in prepared.spec.models)
    longest = lab.profile.sampling.max_new_tokens
    others = {prepared.evaluation, "eval" if prepared.run.training.eval_steps else None}
    for split in ("train", *sorted(filter(None, others))):
        questions = lab.questions("validation" if split == "eval" else split)
        sizes = [len(questions.prompt(index)) for index in range(len(questions))]
        if max(sizes) + longest > limit:
            place = int(np.argmax(sizes))
            raise ValueError(
                f"question {questions.table['id'].iloc[place]!r} of {split}: a prompt of {sizes[place]:,} "
                f"tokens and a response of {longest:,} do not fit {limit:,g} positions of the models: lower "
                "data.max_pixels or responses.max_new_tokens, or remove the row"
            )
