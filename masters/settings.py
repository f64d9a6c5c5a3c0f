"""The profile: every parameter of a reproduction, typed, with the paper's value beside it.

A profile is a folder ``notebooks/params/<profile>/``: ``profile.yaml`` holds what all stages share
(:class:`Profile`), and one file per notebook holds the grid that this notebook runs. Nothing else has
defaults that change a result, and a parameter that nobody knows is refused.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from masters.masking.schedule import MaskSchedule
from masters.objective.options import LossOptions
from masters.runtime.files import ROOT

PARAMS = ROOT / "notebooks" / "params"

Ratio = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Rung = Literal["tiny", "student", "small", "mid", "large", "huge"]


class Strict(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def checked(cls, values: dict[str, Any], path: Path, part: str = "") -> Self:
        """Parameters as this model has them.

        Args:
            values: by name.
            path: of the file they are from, for the message.
            part: of that file.

        Raises:
            ValueError: one is unknown, missing or out of range; one line says which.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = []
            for item in error.errors():
                place = ".".join(filter(None, (part, *map(str, item["loc"])))) or "file"
                known = (
                    f" (known: {', '.join(cls.model_fields)})" if item["type"] == "extra_forbidden" else ""
                )
                problems.append(f"{place}: {item['msg'].removeprefix('Value error, ')}{known}")
            raise ValueError(f"{_shown(path)}: {'; '.join(problems)}") from None


class ModelSpec(Strict):
    """One rung of the ladder: either a folder or hub name, or a small model trained from scratch."""

    path: str | None = Field(
        None, description="folder or hub name of a trained model; paper: Qwen3-VL-8B and others"
    )
    width: Count = Field(32, description="hidden size of the text model and of the vision tower")
    layers: Count = Field(2, description="layers of the text model")
    vision_layers: Count = Field(1, description="layers of the vision tower")
    steps: Count = Field(1000, description="optimiser steps of supervised training")
    caption_steps: int = Field(
        0, ge=0, description="the first of these steps describe pictures; without, none learns to look"
    )
    caption_share: float = Field(
        0.0, ge=0, lt=1, description="share of the later steps' rows that still describe pictures"
    )
    batch: Count = Field(32, description="questions a step")
    learning_rate: Positive = Field(2e-3, description="peak, with linear warm-up and decay")


class Sampling(Strict):
    """How responses are sampled; the defaults are the paper's."""

    temperature: Positive = Field(1.0, description="paper: 1.0")
    top_p: float = Field(0.9, gt=0, le=1, description="paper: 0.9")
    top_k: int = Field(50, ge=0, description="paper: 50; 0 switches it off")
    repetition_penalty: Positive = Field(1.05, description="paper: 1.05")
    max_new_tokens: Count = Field(32, description="paper: not given")


class Generation(Strict):
    """Who generates the responses; see :mod:`masters.responses.engines`."""

    engine: Literal["transformers", "vllm", "openai"] = Field("transformers", description="paper: not given")
    vllm: dict[str, Any] = Field(
        {}, description="arguments of vllm.LLM, such as tensor_parallel_size, for engine: vllm"
    )
    server: str | None = Field(None, description="address of the server, for engine: openai")
    served_as: str = Field(
        "{model}-{ratio}", description="how the server names a model at a mask ratio, for engine: openai"
    )
    concurrency: Count = Field(16, description="requests in flight, for engine: openai")

    @model_validator(mode="after")
    def _openai_has_a_server(self) -> "Generation":
        if (self.engine == "openai") != (self.server is not None):
            raise ValueError("engine openai and the address of a server go together; give both or none")
        try:
            self.served_as.format(model="large", ratio=0.2)
        except (LookupError, ValueError):
            raise ValueError(f"served_as {self.served_as!r} may hold {{model}} and {{ratio}} only") from None
        return self


class LanguageJudge(Strict):
    """A language model as judge; see :class:`masters.judges.llm.LLMJudge`."""

    server: str = Field(description="address of an OpenAI-compatible server; it gets OPENAI_API_KEY if set")
    model: str = Field(min_length=1, description="the model's name on that server; paper: the teacher")


class Lora(Strict):
    """Low-rank adapters, arXiv 2106.09685, in every linear layer but the output head."""

    rank: Count = Field(16, description="rank of the update of a layer; paper: all weights are trained")
    alpha: Positive = Field(32.0, description="the update is scaled by alpha / rank")


class Fit(Strict):
    """What makes a student fit on the hardware; the defaults change nothing."""

    lora: Lora | None = Field(None, description="train adapters only, added to the weights in the end")
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass instead of keeping them"
    )
    bf16: bool = Field(False, description="compute in bfloat16 and keep weights and optimiser in float32")
    accumulate: Count = Field(
        1, description="a step's questions are taken in this many parts; a group of responses stays whole"
    )
    responses_at_once: Count | None = Field(
        None, description="of a group the student reads this many at a time, and each a second time"
    )


class Watch(Strict):
    """What is watched during a run; a loss that is not finite ends it in any case."""

    kl: Positive | None = Field(
        None, description="the run ends when the KL to the student before training is above, nats a token"
    )
    growth: float | None = Field(
        None, gt=1, description="and when the loss is above this many times the largest of its first tenth"
    )
    gradient_norms: Count | None = Field(
        None, description="log the gradient norm of each term every this many log rows; costs three steps"
    )


class Distillation(Strict, LossOptions):
    """What every distillation run shares unless an arm says otherwise."""

    questions: Count = Field(description="size of the question pool; paper: 1.5 million")
    steps: Count = Field(description="optimiser steps; paper: not given")
    batch: Count = Field(description="questions a step; paper: not given")
    learning_rate: Positive = Field(description="paper: 1e-6 for students of 2 to 8 billion weights")
    lr_schedule: Literal["constant", "linear"] = Field(
        "constant", description="linear decays to zero after a warm-up of 2 % of the steps; paper: constant"
    )
    cache_teacher: bool = Field(
        True, description="keep the teachers' log-probabilities on disk instead of running the teachers along"
    )
    top_k_logprobs: Count | None = Field(
        None, description="keep this many log-probabilities a token and the mass of the rest; none keeps all"
    )
    teacher_responses: int = Field(4, ge=0, description="paper: 4")
    student_responses: int = Field(4, ge=0, description="paper: 4")
    r_max: Ratio = Field(0.2, description="first mask ratio; paper: 0.2 for most teachers, 0.4 for two")
    r_step: Positive = Field(0.05, description="paper: 0.05")
    fit: Fit = Fit()
    watch: Watch = Watch()

    @model_validator(mode="after")
    def _step_divides(self) -> "Distillation":
        MaskSchedule(self.r_max, self.r_step)
        return self

    @model_validator(mode="after")
    def _batch_has_parts(self) -> "Distillation":
        if self.batch % self.fit.accumulate:
            raise ValueError(
                f"fit.accumulate {self.fit.accumulate} does not divide the batch of {self.batch} questions"
            )
        return self

    @model_validator(mode="after")
    def _top_k_is_cached(self) -> "Distillation":
        if self.top_k_logprobs is not None and not self.cache_teacher:
            raise ValueError("top_k_logprobs says how the cache is kept, and cache_teacher is off; set one")
        return self


class Profile(Strict):
    """What all seven notebooks share."""

    name: str
    description: str = Field(description="one sentence for the terminal")
    shows: str = Field(description="what this profile can show")
    cannot_show: str = Field(description="what it cannot show")
    minutes: dict[str, float] = Field(description="expected minutes a notebook, measured on two cores")
    processes: Count = Field(2, description="runs trained side by side, one thread each")
    seeds: Count = Field(description="seeds of every distillation arm; paper: 1")
    replicate: int = Field(0, ge=0, description="which copy of the ladder and of the responses; paper: one")
    tasks: tuple[str, ...] = Field(description="question sets, in the order of the tables")
    train_questions: Count = Field(description="training questions a task, for the ladder")
    validation_questions: Count = Field(description="validation questions a task")
    test_questions: Count = Field(description="test questions a task")
    wrong_labels: float = Field(
        0.0, ge=0, le=1, description="share of wrong training labels; paper: not given"
    )
    ladder: dict[Rung, ModelSpec]
    sampling: Sampling = Sampling()
    generation: Generation = Generation()
    judge: LanguageJudge | None = Field(
        None, description="who judges for the arms with judge=llm, and the corpus of notebook 4"
    )
    distillation: Distillation


class NotebookParameters(Strict):
    """Every notebook knows its profile."""

    profile: str


class TasksAndModels(NotebookParameters):
    """Notebook 1."""

    samples: Count = Field(description="sample pictures shown for each task")


class MaskingAblations(NotebookParameters):
    """Notebook 2."""

    ratios: tuple[Ratio, ...] = Field(
        description="mask ratios at which the teachers are examined; paper: not shown"
    )
    r_max_grid: tuple[Ratio, ...] = Field(description="table 5a: 0.0, 0.1, 0.2, 0.3, 0.4, 0.5")


class ResponseCaching(NotebookParameters):
    """Notebook 3."""

    groups_shown: Count = Field(description="groups of responses shown in full")
    responses_grid: tuple[Count, ...] = Field(description="responses a question, Fig. 5")
    source_grid: tuple[tuple[int, int], ...] = Field(description="table 5c: (student, teacher) responses")
    online_steps: Count = Field(
        description="steps of the run that generates while it trains; paper: not run, its cost is estimated"
    )


class RewardDesign(NotebookParameters):
    """Notebook 4."""

    arms: tuple[str, ...] = Field(description="names of masters.experiments.arms compared here, table 5e")


class OfflineRL(NotebookParameters):
    """Notebook 5."""

    arms: tuple[str, ...] = Field(
        description="names of masters.experiments.arms compared here, tables 1, 2, 5b, 5d"
    )
    learning_rates: tuple[Positive, ...] = Field(
        description="Masters at other learning rates; paper: 1e-6 alone"
    )
    stabilised: tuple[str, ...] = Field(
        description="departures from the paper's objective, names of masters.experiments.arms"
    )
    divergences: tuple[str, ...] = Field(
        description="other divergences, alone and with Masters, table 5f; paper: DistiLLM and three others"
    )


class BenchmarkEvaluation(NotebookParameters):
    """Notebook 6."""

    arms: tuple[str, ...] = Field(description="distilled students shown beside the ladder, tables 3 and 4")
    timed_questions: Count = Field(description="questions used for the inference times, Fig. 6")


class Claims(NotebookParameters):
    """Notebook 7."""

    resamples: Count = Field(description="bootstrap resamples of every interval; paper: no interval is given")


NOTEBOOKS: dict[str, type[NotebookParameters]] = {
    "1_tasks_and_models": TasksAndModels,
    "2_masking_ablations": MaskingAblations,
    "3_response_caching": ResponseCaching,
    "4_reward_design": RewardDesign,
    "5_offline_rl": OfflineRL,
    "6_benchmark_evaluation": BenchmarkEvaluation,
    "7_claims": Claims,
}


def profiles() -> list[str]:
    """The profiles that exist, by name."""
    return sorted(path.parent.name for path in PARAMS.glob("*/profile.yaml"))


def load_profile(name: str) -> Profile:
    """What the notebooks of a profile share.

    Raises:
        ValueError: no such profile, or a parameter that is unknown or out of range; one line says which.
    """
    if name not in profiles():
        raise ValueError(f"there is no profile {name!r}; there are: {', '.join(profiles())}")
    path = PARAMS / name / "profile.yaml"
    return Profile.checked(read(path) | {"name": name}, path)


def notebook_parameters(profile: str, notebook: str) -> NotebookParameters:
    """The parameters of one notebook in one profile, checked.

    Raises:
        ValueError: no such profile or notebook, or a parameter that is unknown, missing or out of range.
    """
    load_profile(profile)
    if notebook not in NOTEBOOKS:
        raise ValueError(f"there is no notebook {notebook!r}; there are: {', '.join(NOTEBOOKS)}")
    path = PARAMS / profile / f"{notebook}.yaml"
    return NOTEBOOKS[notebook].checked(read(path) | {"profile": profile}, path)


def read(path: Path) -> dict[str, Any]:
    """The parameters in a file.

    Raises:
        ValueError: it is missing, not YAML, or holds something else than names and values.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{_shown(path)} is missing; every notebook of a profile needs its file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{_shown(path)} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{_shown(path)} must hold 'name: value' lines, and holds {type(content).__name__}")
    return content


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
