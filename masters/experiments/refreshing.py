"""The student's responses written anew at each stage, by the student as it is then.

The idea: the policy term learns from responses of the base student, which training leaves behind. With
``refreshed`` the student that has ended stage m - 1 of Eq. 3, with weights theta, answers the questions that
stage m will see, as often as the base student did. Its responses take the place of the base student's: their
reward is judged anew (Eq. 6), the teacher of the stage and the student before training score them (Eq. 5, 8),
and their behaviour log-probabilities are those under theta.

A stage ends as a stopped run does, in a checkpoint, and the next one begins as a run that goes on. So the
data loader, which reads a batch ahead, meets no response that is not yet written; and as what was written
stays in the run's folder until the run ends, one that was killed ends with the weights of one that was not.

Choices where the paper is silent:
    * It does not say whether the student's responses are refreshed between stages. They are not, unless an
      arm says so: all runs then share what the base student wrote.
    * Refreshed, each stage of each run has random numbers of its own. Only the questions of the stage are
      answered; one that comes twice has the same responses both times.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from masters.experiments.arms import RunSpec
from masters.experiments.curriculum import Part, Stage, all_stages, grouped, order, stages
from masters.experiments.lab import Lab
from masters.responses.engines.local import generate
from masters.responses.teacher_logprobs import distributions
from masters.runtime import distributed
from masters.runtime.files import hash_of, write_atomic
from masters.runtime.progress import report

FOLDER = "refreshed"  # within that of the run


def first_step(spec: RunSpec, stage: Stage) -> int:
    """The step with which a stage begins."""
    return list(map(stages(spec), range(spec.steps))).index(stage)


def questions_of(spec: RunSpec, seed: int, size: int, stage: Stage) -> list[int]:
    """The places in a pool of the questions that a stage sees, each once, in the order of the pool."""
    stage_of, places = stages(spec), order(spec, seed, size)
    seen = {int(place) for i, place in enumerate(places) if stage_of(i // spec.batch) == stage}
    return sorted(seen)


def refreshed(
    lab: Lab,
    spec: RunSpec,
    seed: int,
    stage: Stage,
    folder: Path,
    student: Callable[[], PreTrainedModel],
) -> Part:
    """What the student contributes to a stage after the first.

    Args:
        lab: of the profile.
        spec: of the run.
        seed: of the run.
        stage: that is about to begin.
        folder: of the run, in which the responses are kept, and what was made of them.
        student: gives the student as the stage before has left it; not asked if the responses are there.

    Raises:
        ValueError: several processes train, and each would write its own responses.
    """
    check_alone()
    number = all_stages(spec).index(stage)
    path = folder / FOLDER / f"{number}.parquet"
    places = questions_of(spec, seed, len(lab.pool), stage)
    wanted = [lab.pool[place] for place in places]
    if not path.is_file():
        what = f"responses of the student for stage {number + 1}"
        own_seed = int(hash_of([FOLDER, lab.profile.replicate, seed, number]), 16)
        write_atomic(path, _parquet(answers(lab, student(), spec, wanted, own_seed, what)))
    # From disk even if they were just written, so that nothing depends on it.
    frame, n = pd.read_parquet(path), spec.student_responses
    tokens, behaviour = (
        grouped(frame[name].map(partial(np.asarray, dtype=kind)), n)
        for name, kind in (("tokens", np.int32), ("logprobs", np.float32))
    )
    teacher = reference = None
    if lab.profile.distillation.cache_teacher:
        sources = lab.source(spec.teachers[stage[0]], stage[1], spec.choice()), lab.source(spec.student)
        top_k, size = lab.profile.distillation.top_k_logprobs, len(lab.processor.tokenizer)
        questions, kept = lab.questions("train"), folder / FOLDER
        teacher, reference = (
            distributions(source, questions, wanted, tokens, top_k, size, kept) for source in sources
        )
    return Part(
        n,
        tokens,
        behaviour,
        (frame["correct"] == 1).to_numpy(np.float32).reshape(-1, n),
        teacher,
        reference,
        {place: row for row, place in enumerate(places)},
    )


def check_alone() -> None:
    """Refuse what cannot be combined with refreshed responses.

    Raises:
        ValueError: several processes train.
    """
    if (size := distributed.world_size()) > 1:
        raise ValueError(
            f"refreshed responses are written by one process, but {size} train: start without torchrun, or "
            "take the arm without refreshed"
        )


def answers(
    lab: Lab, student: PreTrainedModel, spec: RunSpec, wanted: Sequence[int], seed: int, what: str
) -> pd.DataFrame:
    """The responses of a student in memory, sampled as those of the base student and judged.

    Args:
        lab: of the profile.
        student: in evaluation mode.
        spec: how many responses a question, and who judges.
        wanted: indices of the questions.
        seed: of the responses.
        what: for progress.

    Returns:
        A row a response, ordered as ``wanted`` and by index: question, index, tokens, text, logprobs, finish,
        asked, label, correct.
    """
    questions, n = lab.questions("train"), spec.student_responses
    rows = []
    for made in generate(student, lab.processor, questions, wanted, range(n), lab.profile.sampling, seed):
        rows += made
        report(what, len(rows), n * len(wanted))
    about = questions.table.iloc[list(wanted)]
    place = {name: row for row, name in enumerate(about["id"])}
    rows.sort(key=lambda row: (place[row.question], row.index))
    frame = pd.DataFrame([vars(row) for row in rows]).drop(columns="support_logprobs")
    frame["asked"] = about["question"].repeat(n).to_numpy()
    frame["label"] = about["answer"].repeat(n).to_numpy()
    judge = lab.judge_of(spec.judge)
    frame["correct"] = judge.score_many(list(frame["asked"]), list(frame["label"]), list(frame["text"]))
    return frame


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()
