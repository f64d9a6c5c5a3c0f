"""The memory of a training step of a run, estimated before it begins (:mod:`masters.training.memory`)."""

from collections.abc import Sequence

from masters.data.questions import Questions
from masters.experiments.arms import RunSpec
from masters.experiments.curriculum import all_stages, wanted_responses
from masters.experiments.lab import Lab
from masters.runtime import distributed
from masters.training.memory import Memory, Shape, estimate, patches


def memory_line(lab: Lab, spec: RunSpec) -> str:
    """Return one line about the memory of a run; an estimate that fails never stops it."""
    try:
        return memory(lab, spec, lab.questions("train"), lab.pool).line()
    except Exception as error:  # a family with a layout of its own may fail anywhere
        return f"memory per device: no estimate for this student ({type(error).__name__}: {error})"


def memory(lab: Lab, spec: RunSpec, questions: Questions, wanted: Sequence[int]) -> Memory:
    """Return the peak memory per device, with every image and response at its largest, for some prompts."""
    settings, savings = lab.profile.distillation, lab.profile.distillation.memory_savings
    world, sharded = distributed.world_size(), distributed.asked_for()
    n = max(sum(one.n for one in wanted_responses(spec, stage)) for stage in all_stages(spec))
    longest, at_once = lab.profile.sampling.max_new_tokens, min(n, savings.responses_at_once or n)
    rows = max(1, spec.batch // (world * savings.accumulate))
    student = lab.skeleton(spec.student)
    images = (questions.image_features([index]) for index in questions.kinds()[1])  # one at a time: large
    seen = [patches(student.config, one["pixel_values"]) for one in images if one]
    shape = Shape(
        questions=rows,
        length=max(len(questions.prompt(index)) for index in wanted) + at_once * (longest - 1),
        tokens=rows * n * longest,
        patches=rows * max(seen, default=0),
        vocabulary=len(lab.processor.tokenizer),
    )
    along = () if settings.cache_teacher or not spec.teachers else (*spec.teachers, spec.student)
    return estimate(
        student,
        shape,
        savings,
        tuple(map(lab.skeleton, along)),
        spec.r_max,
        shards=world if sharded else 1,
        teacher_shards=world if sharded == "FSDP" else 1,
        replicas=1 if sharded else world,
    )
