"""The plan of a study: which arms run how often and how they are tuned.

A plan is a file ``notebooks/params/NAME.yaml``. It builds on a profile (:mod:`masters.settings`) and says
what is other in its runs.
"""

from typing import Any

from pydantic import Field, model_validator

from masters.settings import (
    PARAMS,
    Count,
    Distillation,
    ModelSpec,
    Positive,
    Profile,
    Rung,
    Strict,
    load_profile,
    read,
)


class Trials(Strict):
    """What is tried on the validation questions for an arm; as many settings for every arm."""

    plain: tuple[Positive, ...] = Field(min_length=1, description="learning rates of an arm without rewards")
    rewarded: tuple[tuple[Positive, Positive, Positive], ...] = Field(
        min_length=1, description="learning rate, policy weight and beta of an arm with rewards"
    )

    @model_validator(mode="after")
    def _as_many(self) -> "Trials":
        if len(self.plain) != len(self.rewarded):
            raise ValueError(
                f"{len(self.plain)} trials without and {len(self.rewarded)} with rewards: "
                "every arm gets as many"
            )
        return self


class StudyMinutes(Strict):
    """What one process takes, measured on a core, until the study has figures of its own."""

    ladder: Positive = Field(description="minutes of training of a ladder")
    run: Positive = Field(description="minutes of a run and its evaluation")


class StudyPlan(Strict):
    """A study: which arms run how often, and how they are tuned; see :mod:`masters.study.study`."""

    title: str = Field(description="of its page in the book")
    about: str = Field(description="under which conditions it asks, a sentence or two for the book")
    profile: str = Field(description="whose tasks, ladder, sampling and distillation it takes")
    seeds: Count = Field(description="replicates of the main arms; paper: 1")
    few_seeds: Count = Field(description="replicates of all other arms; paper: 1")
    validation_questions: Count = Field(description="validation questions a task, for tuning")
    test_questions: Count = Field(description="test questions a task")
    minutes: StudyMinutes
    ladder: dict[Rung, ModelSpec] = Field({}, description="models beside or in the place of the profile's")
    distillation: dict[str, Any] = Field({}, description="settings in the place of the profile's")
    trials: Trials
    main: tuple[str, ...] = Field(description="arms at all seeds: those of the first claims")
    tuned: dict[str, tuple[str, ...]] = Field(
        description="arms with trials of their own, and the variants that take over what was chosen for them"
    )
    fixed: tuple[str, ...] = Field((), description="arms that run as they are named")

    @model_validator(mode="after")
    def _consistent(self) -> "StudyPlan":
        if self.few_seeds > self.seeds:
            raise ValueError(f"few_seeds {self.few_seeds} is more than seeds {self.seeds}")
        arms = self.arms()
        if twice := {name for name in arms if arms.count(name) > 1}:
            raise ValueError(f"listed twice: {', '.join(sorted(twice))}")
        if unknown := [name for name in self.main if name not in arms]:
            raise ValueError(f"main: {', '.join(unknown)} is neither tuned nor fixed")
        return self

    def arms(self) -> list[str]:
        """All arms, the main ones first."""
        every = [name for head, variants in self.tuned.items() for name in (head, *variants)]
        return sorted([*every, *self.fixed], key=lambda name: name not in self.main)


def studies() -> list[str]:
    """The plans of studies that exist, the main one first."""
    return sorted((path.stem for path in PARAMS.glob("*.yaml")), key=lambda name: (name != "study", name))


def load_study(name: str = "study") -> tuple[StudyPlan, Profile]:
    """A plan of a study and the profile that its runs have.

    Raises:
        ValueError: no such plan or profile, or a parameter that is unknown, missing or out of range.
    """
    path = PARAMS / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"there is no study {name!r}; there are: {', '.join(studies())}")
    plan = StudyPlan.checked(read(path), path)
    profile = load_profile(plan.profile)
    changed = {
        "validation_questions": plan.validation_questions,
        "test_questions": plan.test_questions,
        "ladder": profile.ladder | plan.ladder,
        "distillation": Distillation.checked(
            profile.distillation.model_dump() | plan.distillation, path, "distillation"
        ),
    }
    return plan, profile.model_copy(update=changed)
