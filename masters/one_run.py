"""One run of an arm from the shell, on one process or on all that torchrun started.

Rank 0 says how much memory a device needs, trains what the run begins with and makes the responses; then all
ranks train, and rank 0 evaluates and writes.
"""

import sys
from pathlib import Path

from masters import distributed, runs
from masters.arms import arm
from masters.curriculum import all_stages, authors
from masters.experiments import Lab
from masters.memory import Memory, Shape, estimate, patches, skeleton


def run_arm(lab: Lab, name: str, seed: int) -> Path:
    """Train and evaluate an arm at a seed, unless that is done.

    Args:
        lab: of the profile.
        name: of the arm.
        seed: of the order of the questions.

    Returns:
        The folder of its result, log, predictions and weights.

    Raises:
        ValueError: no such arm.
        Diverged: the run did.
    """
    spec = arm(name, lab.profile)
    if distributed.rank() == 0:
        if spec.learn_from not in ("nothing", "online"):
            print(memory(lab, name).line(), file=sys.stderr, flush=True)
        for model in set(spec.models):
            lab.folder(model)
        if not (lab.run_folder(spec, seed) / "result.json").is_file():
            lab.prepare([spec])
    distributed.wait()
    lab.run(spec, seed)
    folder = lab.run_folder(spec, seed)
    if distributed.rank() == 0:
        runs.read([(name, seed, folder)])  # refuses one that diverged
    return folder


def memory(lab: Lab, name: str) -> Memory:
    """What a run of an arm needs on each device at most: every response as long as it may become."""
    spec, settings = arm(name, lab.profile), lab.profile.distillation
    n = max(sum(n for *_, n in authors(spec, stage)) for stage in all_stages(spec))
    questions, pool = lab.questions("train"), lab.pool
    rows = spec.batch // (distributed.world_size() * settings.fit.accumulate)
    longest, at_once = lab.profile.sampling.max_new_tokens, min(n, settings.fit.responses_at_once or n)
    student = skeleton(str(lab.folder(spec.student)))
    pictures = questions.image_features(pool[:1])["pixel_values"]
    shape = Shape(
        questions=rows,
        length=max(len(questions.prompt(index)) for index in pool) + at_once * (longest - 1),
        tokens=rows * n * longest,
        patches=rows * patches(student.config, pictures),
        vocabulary=len(lab.processor.tokenizer),
    )
    along = () if settings.cache_teacher or not spec.teachers else (*spec.teachers, spec.student)
    world, asked = distributed.world_size(), distributed.asked_for()
    return estimate(
        student,
        shape,
        settings.fit,
        tuple(skeleton(str(lab.folder(model))) for model in along),
        spec.r_max,
        shards=world if asked else 1,
        teacher_shards=world if asked == "FSDP" else 1,
    )
