"""Refreshed responses: at each stage, the current student answers the stage's questions again.

Why: the policy term learns from responses of the base student, and the trained student moves away from it.
With ``refreshed``, the student with weights theta after stage m - 1 of Eq. 3 answers the questions of stage
m. Its responses replace the base student's: the judge scores them (Eq. 6), the stage's teacher and the
student before training score them (Eq. 5, 8), and their behavior log-probabilities are those under theta.

Each stage ends in a checkpoint, and the next one resumes from it, so the data loader, which reads a batch
ahead, never needs a response that is not written yet. The responses stay in the run's folder until the run
ends, so a killed run ends with the same weights as an undisturbed one.

Choices where the paper is silent:
    * Whether the student's responses are refreshed between stages. By default they are not, and all runs
      share the base student's responses.
    * Each stage of each run has its own random numbers. Only the questions of the stage are answered; a
      question that comes twice has the same responses both times.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from masters.experiments.arms import RunSpec
from masters.experiments.curriculum import ResponseSet, Stage, all_stages, grouped, places_at, stages
from masters.experiments.evaluation import answers
from masters.experiments.lab import Lab
from masters.judges import accuracies
from masters.runtime import distributed
from masters.runtime.errors import one_line
from masters.runtime.files import write_atomic
from masters.runtime.keys import hash_of

FOLDER = "refreshed"  # inside the run's folder


def first_step(spec: RunSpec, stage: Stage) -> int:
    """Return the first step of a stage."""
    return list(map(stages(spec), range(spec.steps))).index(stage)


def refreshed(
    lab: Lab,
    spec: RunSpec,
    seed: int,
    stage: Stage,
    folder: Path,
    student: Callable[[], PreTrainedModel],
) -> ResponseSet:
    """Return the current student's responses to the questions of a stage after the first.

    Args:
        stage: the stage about to begin.
        folder: the run's folder, which keeps the responses and their scores.
        student: returns the student after the previous stage; called only if the responses are missing.

    Raises:
        ValueError: several processes train, and each would write its own responses; or the stored ones are
            damaged.
    """
    if (size := distributed.world_size()) > 1:
        raise ValueError(
            f"refreshed responses need a single process, but {size} train: start without torchrun, or leave "
            "out refreshed"
        )
    number = all_stages(spec).index(stage)
    path = folder / FOLDER / f"{number}.parquet"
    places = places_at(spec, seed, len(lab.pool), stage)
    wanted = [lab.pool[place] for place in places]
    if not path.is_file():
        what = f"responses of the student for stage {number + 1}"
        own_seed = int(hash_of([FOLDER, lab.profile.replicate, seed, number]), 16)
        frame = answers(
            student(),
            lab.processor,
            lab.questions("train"),
            wanted,
            spec.student_responses,
            lab.judge_of(spec.judge),
            lab.profile.sampling,
            own_seed,
            what,
        )
        write_atomic(path, frame.to_parquet(write_page_checksum=True))
    # Always read from disk, so that a resumed run gets the same values.
    try:
        frame, n = pd.read_parquet(path, page_checksum_verification=True), spec.student_responses
        accuracy = accuracies(frame["score"]).astype(np.float32).reshape(-1, n)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({one_line(error)}): delete {folder}, and the run starts again"
        ) from None
    tokens, behaviour = (
        grouped(frame[name].map(partial(np.asarray, dtype=kind)), n)
        for name, kind in (("tokens", np.int32), ("logprobs", np.float32))
    )
    teacher = reference = None
    if lab.profile.distillation.cache_teacher:
        sources = lab.source(spec.teachers[stage[0]], stage[1], spec.choice()), lab.source(spec.student)
        teacher, reference = (lab.scores_of(source, tokens, wanted, folder / FOLDER) for source in sources)
    return ResponseSet(
        n,
        tokens,
        behaviour,
        accuracy,
        teacher,
        reference,
        places,
    )
