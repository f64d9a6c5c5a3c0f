"""The run file: which student learns from which teachers on what data, and where the result goes."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from masters.experiments.arms import CHANGES, RunSpec, arm, split
from masters.masking.schedule import MaskSchedule
from masters.objective.options import LossOptions
from masters.runtime.parameters import Strict, read_parameters
from masters.settings import (
    Count,
    Distillation,
    Few,
    FewOrNone,
    Generation,
    LanguageJudge,
    MemorySavings,
    ModelSpec,
    Name,
    OwnData,
    Placement,
    Positive,
    Profile,
    Ratio,
    Sampling,
    TrainerOptions,
    Watch,
    place_of_model,
)


class Mask(Strict):
    """The mask schedule of Eq. 3."""

    r_max: Ratio = Field(0.2, description="first mask ratio; paper: 0.2 for most teachers, 0.4 for two")
    step: Positive = Field(0.05, description="how much the ratio falls per stage; paper: 0.05")


class ResponseOptions(Sampling, Generation):
    """Responses that student and teachers generate before training: how many, drawn how, by which engine."""

    teacher: FewOrNone = Field(4, description="per question and mask ratio; paper: 4")
    student: FewOrNone = Field(4, description="per question; paper: 4")
    max_new_tokens: Count = Field(512, description="tokens per response; paper: not given")


class TeacherCache(Strict):
    """Teacher log-probabilities kept on disk."""

    top_k: Count | None = Field(64, description="entries kept per token; null: the whole vocabulary")


class Loss(Strict, LossOptions):
    """Options of the loss that differ from the paper's."""


class Teacher(Placement):
    """A teacher, and how it is loaded."""

    path: Name = Field(description="hub name or folder")


class Training(MemorySavings, TrainerOptions):
    """How the student is trained."""

    learning_rate: Positive = Field(1e-6, description="default with lora: 1e-4; paper: 1e-6, all weights")
    lr_schedule: Literal["constant", "linear"] = Field(
        "constant", description="linear: decays to zero; paper: constant"
    )
    epochs: Positive = Field(1, description="passes over the training questions")
    batch: Count = Field(16, description="questions per step, on all devices together")
    save_steps: Count = Field(200, description="steps between checkpoints")
    eval_steps: Count | None = Field(
        None, description="steps between evaluations on data.eval, for the log; null: none during training"
    )
    push_to_hub: str | None = Field(None, description="hub name to upload the trained student to")
    watch: Watch = Watch()
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the question order")

    @model_validator(mode="before")
    @classmethod
    def _faster_with_lora(cls, values: Any) -> Any:
        # At the paper's rate an adapter moves no weight by as much as bfloat16 rounds.
        if isinstance(values, dict) and values.get("lora") is not None:
            return {"learning_rate": 1e-4} | values
        return values


class RunFile(Strict):
    """A run file, checked.

    Attributes:
        file: the file itself; relative paths start at its folder.
    """

    student: Name = Field(description="hub name or folder of the student")
    teachers: tuple[Teacher, ...] = Field(
        description="hub names or folders, or {path, device_map, dtype}, in the order in which they teach"
    )
    output_dir: Name = Field(description="folder of the student and of everything else that the run writes")
    data: OwnData
    method: str = Field("masters", description="an arm of masters.experiments.arms")
    mask: Mask = Mask()
    responses: ResponseOptions = ResponseOptions()
    reward: str | Annotated[dict[Literal["llm"], LanguageJudge], Field(min_length=1)] = Field(
        "rule", description="a scorer of masters.judges.scorers, FILE.py:FUNCTION, or {llm: {server, model}}"
    )
    teacher_cache: TeacherCache | Literal["live"] = Field(
        TeacherCache(), description="log-probabilities kept on disk; live: teachers stay in memory instead"
    )
    loss: Loss = Loss()
    training: Training = Training()
    processes: Few | None = Field(
        None, description="processes that generate and score; default: one per GPU, or one"
    )
    file: Path

    @field_validator("teachers", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        several = value if isinstance(value, list | tuple) else [value]
        return [{"path": one} if isinstance(one, str) else one for one in several]

    @model_validator(mode="after")
    def _agree(self) -> "RunFile":
        MaskSchedule(self.mask.r_max, self.mask.step)
        names, values = split(self.method)  # values such as r_max=0.4
        variants = names.split("+")
        if not set(variants) <= set(CHANGES):
            raise ValueError(f"method {self.method!r} is unknown; there are: {', '.join(CHANGES)}")
        if {"base", "mid", "large", "online"}.intersection(variants):
            raise ValueError(f"method {self.method!r} distills nothing; choose one such as masters")
        if "student" in values:
            raise ValueError(f"method {self.method!r} names a student: set student instead")
        if "reasoning" in variants:
            raise ValueError(
                "method 'reasoning' learns from rationales, which data of your own do not have; choose sft"
            )
        if not self.teachers and "sft" not in variants:
            raise ValueError(f"method {self.method!r} needs a teacher: name one in teachers")
        if self.training.eval_steps and not self.data.eval:
            raise ValueError("training.eval_steps needs questions: set data.eval, or remove it")
        return self

    @property
    def folder(self) -> Path:
        """The folder at which relative paths start."""
        return self.file.parent

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(os.path.realpath(self.folder / self.output_dir))

    @property
    def rungs(self) -> list[str]:
        """The names of the teachers in the profile."""
        if len(self.teachers) == 1:
            return ["large"]
        return [f"teacher{number}" for number in range(1, len(self.teachers) + 1)]

    def profile(self, rows: int, evaluated: int, questions: int | None = None) -> Profile:
        """Return the profile of this run.

        Args:
            rows: number of rows of the training split.
            evaluated: number of rows of the largest other split.
            questions: number of training rows that the processor accepts; None: all.
        """
        questions = rows if questions is None else questions
        options, training, cache = self.responses, self.training, self.teacher_cache
        batch = min(training.batch, questions)
        steps = max(1, round(training.epochs * questions / batch))
        models = {"student": Teacher(path=self.student)} | dict(zip(self.rungs, self.teachers, strict=True))
        ladder = {
            rung: ModelSpec(**model.model_dump() | {"path": place_of_model(model.path, self.folder)})
            for rung, model in models.items()
        }
        # A teacher that is spread over all GPUs leaves no room for a second process.
        spread = any(teacher.device_map for teacher in self.teachers)
        return Profile(
            name=self.output.name,
            description=f"{self.method} on own data",
            shows="",
            cannot_show="",
            minutes={},
            processes=self.processes or (1 if spread else max(1, torch.cuda.device_count())),
            seeds=1,
            tasks=(self.data,),
            train_questions=rows,
            validation_questions=max(1, evaluated),
            test_questions=max(1, evaluated),
            ladder=ladder,
            sampling=Sampling(**options.model_dump(include=set(Sampling.model_fields))),
            generation=Generation(**options.model_dump(include=set(Generation.model_fields))),
            judge=self.reward["llm"] if isinstance(self.reward, dict) else None,
            reward=self.reward if isinstance(self.reward, str) else "rule",
            base=self.folder,
            distillation=Distillation.checked(
                {
                    "questions": questions,
                    "steps": steps,
                    "batch": batch,
                    "learning_rate": training.learning_rate,
                    "lr_schedule": training.lr_schedule,
                    "cache_teacher": cache != "live",
                    "top_k_logprobs": None if cache == "live" else cache.top_k,
                    "teacher_responses": options.teacher,
                    "student_responses": options.student,
                    "r_max": self.mask.r_max,
                    "r_step": self.mask.step,
                    "memory_savings": training.model_dump(include=set(MemorySavings.model_fields)),
                    "watch": training.watch.model_dump(),
                    "trainer": training.model_dump(include=set(TrainerOptions.model_fields)),
                    **self.loss.loss_options().model_dump(),
                },
                self.file,
            ),
        )

    def spec(self, profile: Profile, labeled: bool) -> RunSpec:
        """Return the training run.

        Args:
            labeled: whether the training questions have answers. Without any there is no accuracy reward.
        """
        name = self.method
        if len(self.teachers) > 1 and "teachers=" not in name:
            name += f"+teachers={','.join(self.rungs)}"
        spec = arm(name, profile)
        if spec.cross_entropy:
            spec = spec.model_copy(update={"teachers": ()})
        if isinstance(self.reward, dict) and "accuracy" in spec.rewards:
            spec = spec.model_copy(update={"judge": "llm"})
        if not labeled:
            rewards = tuple(reward for reward in spec.rewards if reward != "accuracy")
            if spec.rewards and (not rewards or spec.flat == "skip"):
                needs = "loss: {flat: skip}" if rewards else f"method {self.method!r}"
                raise ValueError(f"{needs} needs the accuracy reward, and no training question has an answer")
            spec = spec.model_copy(update={"rewards": rewards})
        return spec


def load_run_file(path: Path | str) -> RunFile:
    """Read and check a run file.

    Raises:
        ValueError: the file is missing, too large or not YAML, or a parameter is unknown, missing or wrong.
    """
    path = Path(path)
    content = read_parameters(path)
    if "file" in content:
        raise ValueError(f"{path}: file is not a parameter")
    return RunFile.checked(content | {"file": path.absolute()}, path)


def from_options(options: dict[str, Any]) -> RunFile:
    """Check a run given as Python values, as :func:`load_run_file`; paths start at the working directory."""
    return RunFile.checked(options | {"file": Path.cwd() / "masters.distill"}, Path("masters.distill"))
