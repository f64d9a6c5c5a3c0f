"""The run file: which student learns from which teachers on what data, and where the result goes."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from masters.experiments.arms import CHANGES, RunSpec, arm
from masters.masking.schedule import MaskSchedule
from masters.objective.options import LossOptions
from masters.settings import (
    Count,
    Distillation,
    Fit,
    Generation,
    LanguageJudge,
    Lora,
    ModelSpec,
    OwnData,
    Positive,
    Profile,
    Ratio,
    Sampling,
    Strict,
    TrainerOptions,
)

MAX_BYTES = 1_000_000  # of a run file
# Rungs of one to four teachers, weakest first.
TEACHERS = ("small", "mid", "large", "huge")
NAMES: dict[int, tuple[str, ...]] = {0: (), 1: ("large",), 2: ("mid", "large"), 3: ("small", "mid", "large"), 4: TEACHERS}


class Mask(Strict):
    """The mask schedule of Eq. 3."""

    r_max: Ratio = Field(0.2, description="first mask ratio; paper: 0.2 for most teachers, 0.4 for two")
    step: Positive = Field(0.05, description="how much the ratio falls per stage; paper: 0.05")


class ResponseOptions(Strict):
    """Responses that student and teachers generate before training."""

    teacher: int = Field(4, ge=0, description="per question and mask ratio; paper: 4")
    student: int = Field(4, ge=0, description="per question; paper: 4")
    max_new_tokens: Count = Field(512, description="tokens per response; paper: not given")
    temperature: Positive = Field(1.0, description="paper: 1.0")
    top_p: float = Field(0.9, gt=0, le=1, description="paper: 0.9")
    top_k: int = Field(50, ge=0, description="paper: 50; 0 disables top-k")
    repetition_penalty: Positive = Field(1.05, description="paper: 1.05")
    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    vllm: dict[str, Any] = Field({}, description="engine vllm: arguments of vllm.LLM")
    server: str | None = Field(None, description="engine openai: address of the server")
    served_as: str = Field("{model}-{ratio}", description="engine openai: the server's name of a model")
    concurrency: Count = Field(16, description="engine openai: requests in flight")
    batch: Count | Literal["auto"] = Field(
        "auto", description="responses generated at once; auto: from the free memory"
    )


class TeacherCache(Strict):
    """Teacher log-probabilities kept on disk."""

    top_k: Count | None = Field(64, description="entries kept per token; null: the whole vocabulary")


class Loss(Strict, LossOptions):
    """Options of the loss that differ from the paper's."""


class Training(Strict):
    """How the student is trained."""

    learning_rate: Positive = Field(1e-6, description="paper: 1e-6")
    lr_schedule: Literal["constant", "linear"] = Field("constant", description="paper: constant")
    epochs: Positive = Field(1, description="passes over the training questions")
    batch: Count = Field(16, description="questions per step, on all devices together")
    accumulate: Count = Field(1, description="gradient accumulation steps per batch")
    responses_at_once: Count | None = Field(None, description="responses per forward pass")
    gradient_checkpointing: bool = False
    bf16: bool = Field(False, description="compute in bfloat16; weights are trained in float32 either way")
    lora: Lora | None = None
    warmup_ratio: float = Field(0, ge=0, lt=1)
    max_grad_norm: Positive = 1.0
    optim: str = "adamw_torch_fused"
    save_steps: Count = Field(200, description="steps between checkpoints")
    report_to: tuple[str, ...] = Field((), description="trackers of transformers, such as tensorboard")
    push_to_hub: str | None = Field(None, description="hub name to upload the trained student to")
    seed: int = Field(0, ge=0, lt=2**32)
    args: dict[str, Any] = Field({}, description="other arguments of transformers.TrainingArguments")


class RunFile(Strict):
    """A run file, checked.

    Attributes:
        folder: where relative paths start: the folder of the file.
    """

    student: str = Field(description="hub name or folder of the student")
    teachers: tuple[str, ...] = Field(description="hub names or folders, in the order in which they teach")
    output_dir: str
    data: OwnData
    method: str = Field("masters", description="an arm of masters.experiments.arms")
    mask: Mask = Mask()
    responses: ResponseOptions = ResponseOptions()
    reward: str | dict[Literal["llm"], LanguageJudge] = "rule"
    teacher_cache: TeacherCache | Literal["live"] = TeacherCache()
    loss: Loss = Loss()
    training: Training = Training()
    processes: Count | None = Field(
        None, description="processes that generate and score; default: one per GPU, or one"
    )
    folder: Path = Path()

    @field_validator("teachers", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agree(self) -> "RunFile":
        MaskSchedule(self.mask.r_max, self.mask.step)
        if len(self.teachers) not in NAMES:
            raise ValueError(f"{len(self.teachers)} teachers; give at most {max(NAMES)}")
        if self.method.split("+")[0] not in CHANGES:
            raise ValueError(f"method {self.method!r} is unknown; there are: {', '.join(CHANGES)}")
        if self.method.split("+")[0] in ("base", "mid", "large", "online"):
            raise ValueError(f"method {self.method!r} distills nothing; choose one such as masters or naive_multi")
        if not self.teachers and not self.learns_from_labels_alone:
            raise ValueError(f"method {self.method!r} needs a teacher: name one in teachers")
        return self

    @property
    def learns_from_labels_alone(self) -> bool:
        """Whether the method reads labels and no teacher."""
        return self.method.split("+")[0] in ("sft", "reasoning")

    @property
    def output(self) -> Path:
        """The output folder."""
        return (self.folder / self.output_dir).resolve()

    def place(self, name: str) -> str:
        """Return a model's folder as an absolute path, or its hub name."""
        path = (self.folder / Path(name).expanduser()).resolve()
        if path.is_dir():
            return str(path)
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ValueError(f"no folder {path}: give a folder of a model relative to the run file, or a hub name")
        return name

    def rungs(self) -> dict[str, str]:
        """Map each rung of the profile to its model: the student, then the teachers."""
        models = dict(zip(NAMES[len(self.teachers)], self.teachers, strict=True))
        return {"student": self.place(self.student)} | {rung: self.place(m) for rung, m in models.items()}

    def profile(self, questions: int) -> Profile:
        """Return the profile of this run.

        Args:
            questions: training questions.
        """
        options, training, cache = self.responses, self.training, self.teacher_cache
        batch = min(training.batch, questions)
        steps = max(1, round(training.epochs * questions / batch))
        return Profile(
            name=self.output.name,
            description=f"{self.method} on own data",
            shows="",
            cannot_show="",
            minutes={},
            processes=self.processes or max(1, torch.cuda.device_count()),
            seeds=1,
            tasks=(self.data.name,),
            train_questions=questions,
            validation_questions=1,
            test_questions=1,
            ladder={rung: ModelSpec(path=path) for rung, path in self.rungs().items()},
            sampling=Sampling(**options.model_dump(include=set(Sampling.model_fields))),
            generation=Generation(
                **options.model_dump(include=set(Generation.model_fields) - {"batch"}),
                batch=None if options.batch == "auto" else options.batch,
            ),
            judge=self.reward["llm"] if isinstance(self.reward, dict) else None,
            data=self.data,
            reward=self.reward if isinstance(self.reward, str) else "rule",
            folder=str(self.folder),
            distillation=Distillation(
                questions=questions,
                steps=steps,
                batch=batch,
                learning_rate=training.learning_rate,
                lr_schedule=training.lr_schedule,
                cache_teacher=cache != "live",
                top_k_logprobs=None if cache == "live" else cache.top_k,
                teacher_responses=options.teacher,
                student_responses=options.student,
                r_max=self.mask.r_max,
                r_step=self.mask.step,
                fit=Fit(**training.model_dump(include=set(Fit.model_fields))),
                trainer=TrainerOptions(**training.model_dump(include=set(TrainerOptions.model_fields))),
                **self.loss.loss_options().model_dump(),
            ),
        )

    def spec(self, profile: Profile, labelled: bool) -> RunSpec:
        """Return the training run.

        Args:
            profile: :meth:`profile`.
            labelled: whether the training questions have answers. Without any there is no accuracy reward.
        """
        name = self.method
        if len(self.teachers) > 1 and "teachers=" not in name:
            name += f"+teachers={','.join(NAMES[len(self.teachers)])}"
        if isinstance(self.reward, dict):
            name += "+judge=llm"
        spec = arm(name, profile)
        if not labelled:
            rewards = tuple(reward for reward in spec.rewards if reward != "accuracy")
            spec = spec.model_copy(update={"rewards": rewards})
        return spec


def load_run_file(path: Path | str) -> RunFile:
    """Read and check a run file.

    Raises:
        ValueError: the file is missing, too large or not YAML, or a parameter is unknown, missing or wrong.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a run file has at most {MAX_BYTES:,}")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the run file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'name: value' lines but holds {type(content).__name__}")
    if "folder" in content:
        raise ValueError(f"{path}: folder is not a parameter; relative paths start at the folder of the file")
    return RunFile.checked(content | {"folder": path.absolute().parent}, path)


def from_options(options: dict[str, Any]) -> RunFile:
    """Check a run given as Python values; relative paths start at the working directory.

    Raises:
        ValueError: as :func:`load_run_file`.
    """
    return RunFile.checked(options | {"folder": Path(os.getcwd())}, Path("masters.distill"))
