"""Plan of a study: which arms run how often, and how they are tuned.

A plan is a file ``notebooks/params/NAME.yaml``: a profile (:mod:`masters.settings`) and what differs from it.
"""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from masters.experiments.arms import RunSpec, arm
from masters.runtime.parameters import Strict, read_parameters
from masters.settings import (
    PARAMS,
    Count,
    Distillation,
    ModelSpec,
    Positive,
    Profile,
    Ratio,
    Registers,
    Rung,
    load_profile,
    profiles,
)


class Trials(Strict):
    """Settings tried on the validation questions; the same number for every arm."""

    plain: tuple[Positive, ...] = Field(min_length=1, description="learning rates of arms without rewards")
    rewarded: tuple[tuple[Positive, Positive, Positive], ...] = Field(
        min_length=1, description="learning rate, policy weight and beta of arms with rewards"
    )

    @model_validator(mode="after")
    def _as_many(self) -> "Trials":
        if len(self.plain) != len(self.rewarded):
            numbers = f"{len(self.plain)} trials without rewards and {len(self.rewarded)} with"
            raise ValueError(f"{numbers}: give every arm the same number")
        return self


class StudyMinutes(Strict):
    """Expected minutes in one process, used until the study has its own measurements."""

    ladder: Positive = Field(description="training the ladder of a replicate")
    run: Positive = Field(description="one run and its evaluation")


class StudyPlan(Strict):
    """A study; see :mod:`masters_book.study.study`."""

    title: str = Field(description="title of the study, for headings and tables")
    about: str = Field(description="conditions of the study in a few sentences, for the book")
    profile: str = Field(description="profile with its tasks, ladder, sampling and distillation")
    seeds: Count = Field(description="replicates of the main arms; paper: 1")
    few_seeds: Count = Field(description="replicates of all other arms; paper: 1")
    validation_questions: Count = Field(description="validation questions per task, for tuning")
    test_questions: Count = Field(description="test questions per task")
    minutes: StudyMinutes
    ladder: dict[Rung, ModelSpec] = Field({}, description="models added to the profile's, or replacing them")
    registers: Registers | None = Field(None, description="wordings of the training labels; null: all four")
    distillation: dict[str, Any] = Field({}, description="settings that replace the profile's")
    teacher_at_least: Ratio | None = Field(
        None,
        description="accuracy of the large model on the validation questions, which must also be above that "
        "of the mid model; a replicate with other models has no runs, and the next takes its place",
    )
    trials: Trials
    main: tuple[str, ...] = Field(description="arms that run at all seeds: those of the first claims")
    tuned: dict[str, tuple[str, ...]] = Field(
        description="arms with their own trials, each with the variants that reuse its chosen setting"
    )
    fixed: tuple[str, ...] = Field((), description="arms that run as named, without trials")

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
        """Return all arms, main arms first."""
        every = [name for head, variants in self.tuned.items() for name in (head, *variants)]
        return sorted([*every, *self.fixed], key=lambda name: name not in self.main)


def studies() -> list[str]:
    """Return the names of all plans, the main study first."""
    return sorted((path.stem for path in PARAMS.glob("*.yaml")), key=lambda name: (name != "study", name))


def load_study(name: str = "study") -> tuple[StudyPlan, Profile]:
    """Load a plan and the profile of its runs.

    Raises:
        ValueError: no such plan, profile or arm, or a parameter is unknown, missing or out of range.
    """
    path = PARAMS / f"{name}.yaml"
    if name not in studies():
        raise ValueError(f"there is no study {name!r}; there are: {', '.join([*studies(), 'imitation'])}")
    plan = StudyPlan.checked(read_parameters(path), path)
    if plan.profile not in profiles():
        raise ValueError(f"{path}: there is no profile {plan.profile!r}; there are: {', '.join(profiles())}")
    profile = load_profile(plan.profile)
    changed = {
        "validation_questions": plan.validation_questions,
        "test_questions": plan.test_questions,
        "registers": plan.registers,
        "ladder": profile.ladder | plan.ladder,
        "distillation": Distillation.checked(
            profile.distillation.model_dump() | plan.distillation, path, "distillation"
        ),
    }
    profile = profile.model_copy(update=changed)
    specs = {name_of_arm: _checked(name_of_arm, profile, path) for name_of_arm in plan.arms()}
    models = {model for name_of_arm in plan.main for model in specs[name_of_arm].models}
    if plan.teacher_at_least is not None and not {"mid", "large"} <= models:
        raise ValueError(f"{path}: teacher_at_least compares mid and large, which the main arms do not need")
    return plan, profile


def _checked(name: str, profile: Profile, path: Path) -> RunSpec:
    try:
        return arm(name, profile)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
