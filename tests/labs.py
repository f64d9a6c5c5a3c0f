"""A profile that takes seconds, and what stands in for worker processes."""

from collections.abc import Callable, Sequence
from typing import Any

from masters.experiments.lab import Lab
from masters.settings import Distillation, ModelSpec, Profile, Sampling

Jobs = Sequence[tuple[Callable[..., None], tuple[Any, ...]]]


def profile(**changes: Any) -> Profile:
    """Twenty steps for each model, six for each run: enough to see that every stage does its part."""
    small: dict[str, Any] = {"layers": 1, "steps": 20, "caption_steps": 5, "batch": 2}
    distillation = Distillation(
        questions=6, steps=6, batch=2, learning_rate=1e-3, r_max=0.2, r_step=0.1,
        teacher_responses=2, student_responses=2,
    )  # fmt: skip
    values: dict[str, Any] = {
        "name": "tiny",
        "description": "for the tests",
        "shows": "nothing",
        "cannot_show": "anything",
        "minutes": {},
        "processes": 1,
        "seeds": 1,
        "tasks": ("charts",),
        "train_questions": 32,
        "validation_questions": 6,
        "test_questions": 8,
        "ladder": {
            "student": ModelSpec(width=16, **small),
            "mid": ModelSpec(width=32, **small),
            "large": ModelSpec(width=48, **small),
        },
        "sampling": Sampling(max_new_tokens=8),
    }
    return Profile(**(values | {"distillation": distillation.model_copy(update=changes)}))


def here(self: Lab, jobs: Jobs, *rest: object) -> None:
    """What workers do, done in this process: starting one takes longer than all of this profile's work."""
    for job, arguments in jobs:
        job(self, *arguments)
