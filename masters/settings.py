"""Profiles: every parameter of a reproduction, typed and with the paper's value.

A profile is a folder ``notebooks/params/<profile>/``: ``profile.yaml`` holds the parameters of all notebooks
(:class:`Profile`), and one file per notebook holds its own. No other defaults change a result, and
unknown parameters are refused.
"""

import os
import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from masters.masking.schedule import MaskSchedule
from masters.objective.options import Averaging, LossOptions
from masters.runtime.files import ROOT
from masters.runtime.parameters import Strict, read_parameters
from masters.runtime.server import check_server

PARAMS = ROOT / "notebooks" / "params"

# Every number has an upper bound, so that a slip of the keyboard is refused before anything runs.
Ratio = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=100_000_000)]
Few = Annotated[int, Field(ge=1, le=10_000)]
Positive = Annotated[float, Field(gt=0, le=1e15)]
Minutes = Annotated[float, Field(ge=0, le=1e9)]
# Wordings of training labels (masters.data.labels); each label has one of them, drawn uniformly.
Registers = Annotated[tuple[Literal["bare", "sentence", "wordy", "rationale"], ...], Field(min_length=1)]
FewOrNone = Annotated[int, Field(ge=0, le=10_000)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]
Rung = Annotated[str, Field(pattern=r"^(tiny|student|small|mid|large|huge|teacher\d+)$")]


class Columns(Strict):
    """Names of the columns of a data file; None looks for the usual names."""

    images: str | None = Field(None, description="one or several pictures; default: images or image")
    question: str | None = Field(None, description="default: question, query or prompt")
    answer: str | None = Field(
        None, description="one or several accepted answers; default: answer, answers, response ..."
    )
    options: str | None = Field(None, description="texts of the options; default: options or choices")


class SplitFromTrain(Strict):
    """A split cut from the training rows, by picture."""

    split_from_train: Count = Field(description="number of rows; no picture is in both splits")


def _kind_of_entry(value: Any) -> str:
    if isinstance(value, dict | SplitFromTrain):
        return "cut"
    return "files" if isinstance(value, list) else "file"


# Tagged, so that a wrong entry gives one message instead of one per type.
Entry = Annotated[
    Annotated[str, Tag("file")] | Annotated[list[str], Tag("files")] | Annotated[SplitFromTrain, Tag("cut")],
    Discriminator(_kind_of_entry),
]


class OwnData(Strict):
    """Rows of your own, see :mod:`masters.own_data`. A path is relative to the file that names it."""

    name: str = Field("own", pattern=r"^[\w.-]+$", description="name of the question set")
    train: str | list[str] = Field(
        description="JSONL, JSON, CSV, TSV or Parquet (a glob for several), a datasets folder, an image "
        "folder, or a hub name; or a list of these"
    )
    eval: Entry | None = Field(None, description="rows for the evaluation, as train, or cut from it")
    test: Entry | None = Field(None, description="rows for the last evaluation instead, in the same ways")
    columns: Columns = Columns()
    system: str | None = Field(None, description="system prompt of the rows that have none")
    max_pixels: int | None = Field(
        None, ge=28 * 28, le=10**9, description="larger pictures are scaled down to this"
    )
    on_bad_row: Literal["skip", "stop"] = Field("skip", description="skipped rows are listed with reasons")


# A built-in question set by name, or data of your own.
Task = Annotated[
    Annotated[str, Tag("name")] | Annotated[OwnData, Tag("data")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "data"),
]


class Placement(Strict):
    """How a saved model is loaded to generate and score."""

    device_map: Name | None = Field(
        None, description="auto, balanced or sequential: spread over all GPUs; or the name of a device"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(None, description="default: as stored")


class ModelSpec(Placement):
    """One rung of the ladder: a saved or hub model, or a small model trained from scratch."""

    path: Name | None = Field(None, description="folder or hub name of a model")
    width: Few = Field(32, description="hidden size of the text model and the vision tower")
    layers: Few = Field(2, description="layers of the text model")
    vision_layers: Few = Field(1, description="layers of the vision tower")
    steps: Count = Field(1000, description="optimizer steps of supervised training")
    caption_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="captioning warm-up steps, part of steps; without them, small models ignore the image",
    )
    caption_share: float = Field(
        0.0, ge=0, lt=1, description="fraction of captions in the batches after the warm-up"
    )
    batch: Count = Field(32, description="questions per step")
    learning_rate: Positive = Field(2e-3, description="peak of a schedule with linear warm-up and decay")
    weight_decay: float = Field(0.01, ge=0, le=1e6, description="weight decay of AdamW")
    averaging: Averaging = Field(
        "response", description="token: an answer weighs as much in a long label as in a short one"
    )
    label_share: float = Field(1.0, gt=0, le=1, description="fraction of pictures with labeled questions")
    wrong_labels: Share | None = Field(None, description="fraction of wrong labels; null: the profile's")

    def determining(self) -> dict[str, Any]:
        """Return all that determines the trained model.

        Of the fields in ``LATER`` only those that differ from their defaults, so that keys outlive them.
        """
        usual = {name for name in LATER if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(exclude=set(Placement.model_fields) | usual)


# Fields of ModelSpec younger than stored results.
LATER = ("weight_decay", "averaging", "label_share", "wrong_labels")


class Sampling(Strict):
    """Sampling settings of responses; the defaults are the paper's."""

    temperature: Positive = Field(1.0, description="paper: 1.0")
    top_p: float = Field(0.9, gt=0, le=1, description="paper: 0.9")
    top_k: int = Field(50, ge=0, le=100_000_000, description="paper: 50; 0 disables top-k")
    repetition_penalty: Positive = Field(1.05, description="paper: 1.05")
    max_new_tokens: Count = Field(32, description="tokens per response; paper: not given")


class Generation(Strict):
    """The engine that generates the responses; see :mod:`masters.responses.engines`."""

    engine: Literal["transformers", "vllm", "openai"] = Field("transformers", description="paper: not given")
    batch: Count | None = Field(
        None, description="engine transformers: responses at once; auto: as many as the free memory holds"
    )
    vllm: dict[str, Any] = Field(
        {}, description="engine vllm: arguments of vllm.LLM, such as tensor_parallel_size"
    )
    server: str | None = Field(None, description="engine openai: address of the server")
    served_as: str = Field(
        "{model}-{ratio}", description="engine openai: the server's name for a model at a mask ratio"
    )
    concurrency: Few = Field(16, description="engine openai: requests in flight")

    @field_validator("batch", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _openai_has_a_server(self) -> "Generation":
        if (self.engine == "openai") != (self.server is not None):
            raise ValueError("engine openai and a server address go together; set both or neither")
        if self.server is not None:
            check_server(self.server, os.environ.get("OPENAI_API_KEY"))
        try:
            specs = [spec or "" for _, _, spec, _ in string.Formatter().parse(self.served_as)]
            if any(re.search(r"\d{3}", spec) for spec in specs):  # a width of gigabytes
                raise ValueError
            self.served_as.format(model="large", ratio=0.2)
        except (AttributeError, LookupError, ValueError):
            raise ValueError(f"served_as {self.served_as!r} may use only {{model}} and {{ratio}}") from None
        return self


class LanguageJudge(Strict):
    """A language model as judge; see :class:`masters.judges.llm.LLMJudge`."""

    server: str = Field(description="address of an OpenAI-compatible server; OPENAI_API_KEY is sent if set")
    model: str = Field(min_length=1, max_length=200, description="name on that server; paper: the teacher")
    max_tokens: Count | None = Field(None, description="per reply; more if the model reasons")
    timeout: Positive = Field(60.0, description="seconds per request")
    concurrency: Few = Field(4, description="requests in flight")

    @model_validator(mode="after")
    def _server_is_an_address(self) -> "LanguageJudge":
        check_server(self.server, os.environ.get("OPENAI_API_KEY"))
        return self


class Lora(Strict):
    """Low-rank adapters (arXiv 2106.09685) in every linear layer except the output head."""

    rank: Count = Field(16, description="rank of each layer's update; paper: all weights are trained")
    alpha: Positive = Field(32.0, description="scales the update by alpha / rank")


class MemorySavings(Strict):
    """Memory savings when training the student; all are off by default."""

    lora: Lora | None = Field(None, description="train adapters only; they are merged after training")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass instead of storing them"
    )
    bf16: bool = Field(False, description="compute in bfloat16; weights and optimizer states stay in float32")
    accumulate: Count = Field(
        1, description="gradient accumulation steps per batch; a question's group of responses is not split"
    )
    responses_at_once: Count | None = Field(
        None,
        description="responses per forward pass; each is recomputed in the backward pass to save memory",
    )


class Watch(Strict):
    """Stopping rules and diagnostics of a run; a loss that is not finite always stops it."""

    kl: Positive | None = Field(
        None, description="stop above this KL to the student before training, in nats per token"
    )
    growth: float | None = Field(
        None,
        gt=1,
        le=1e15,
        description="stop when the loss exceeds this multiple of its maximum in the first tenth",
    )


class TrainerOptions(Strict):
    """Options of ``transformers.Trainer``; the defaults are those of every result in the book."""

    warmup_ratio: float | None = Field(
        None, ge=0, lt=1, description="warm-up as a share of steps; null: 2 % if it decays, else none"
    )
    max_grad_norm: Positive = Field(1.0, description="gradients are clipped to this norm; paper: not given")
    optim: str = Field("adamw_torch_fused", description="optimizer by its name in transformers")
    save_steps: Count = Field(500, description="steps between checkpoints")
    report_to: tuple[str, ...] = Field((), description="trackers of transformers, such as tensorboard")
    args: dict[str, Any] = Field({}, description="other arguments of transformers.TrainingArguments")


class Distillation(Strict, LossOptions):
    """Parameters of every distillation run, unless an arm changes them."""

    questions: Count = Field(description="size of the question pool; paper: 1.5 million")
    steps: Count = Field(description="optimizer steps; paper: not given")
    batch: Count = Field(description="questions per step; paper: not given")
    learning_rate: Positive = Field(description="paper: 1e-6 for students of 2 to 8 billion weights")
    lr_schedule: Literal["constant", "linear"] = Field(
        "constant", description="linear: decay to zero after a warm-up of 2 % of the steps; paper: constant"
    )
    cache_teacher: bool = Field(
        True, description="store the teacher log-probabilities instead of running the teachers in training"
    )
    top_k_logprobs: Count | None = Field(
        None, description="log-probabilities to store per token, plus the mass of the rest; null: all"
    )
    teacher_responses: FewOrNone = Field(4, description="per question; paper: 4")
    student_responses: FewOrNone = Field(4, description="per question; paper: 4")
    r_max: Ratio = Field(0.2, description="first mask ratio; paper: 0.2 for most teachers, 0.4 for two")
    r_step: Positive = Field(0.05, description="paper: 0.05")
    memory_savings: MemorySavings = MemorySavings()
    watch: Watch = Watch()
    trainer: TrainerOptions = TrainerOptions()

    @model_validator(mode="after")
    def _agree(self) -> "Distillation":
        MaskSchedule(self.r_max, self.r_step)
        if self.batch % self.memory_savings.accumulate:
            raise ValueError(
                f"accumulate {self.memory_savings.accumulate} does not divide the batch of "
                f"{self.batch} questions"
            )
        if self.top_k_logprobs is not None and not self.cache_teacher:
            raise ValueError("top_k_logprobs needs cache_teacher, which is off; remove one of the two")
        return self


class Profile(Strict):
    """Parameters that all seven notebooks share."""

    name: str
    description: str = Field(description="one sentence for the terminal")
    shows: str = Field(description="what this profile can show")
    cannot_show: str = Field(description="what it cannot show")
    minutes: dict[str, Minutes] = Field(description="expected minutes per notebook, measured on two cores")
    processes: Few = Field(2, description="runs trained in parallel, one thread each")
    seeds: Few = Field(description="seeds per distillation arm; paper: 1")
    replicate: FewOrNone = Field(0, description="number of the ladder and its responses; paper: one")
    tasks: tuple[Task, ...] = Field(
        min_length=1, description="question sets, in the order of the tables: names, or data of your own"
    )
    train_questions: Count = Field(description="training questions per task, for the ladder")
    validation_questions: Count = Field(description="per task")
    test_questions: Count = Field(description="per task")
    wrong_labels: Share = Field(0.0, description="fraction of wrong training labels; paper: not given")
    registers: Registers | None = Field(None, description="wordings of the training labels; null: all four")
    ladder: dict[Rung, ModelSpec]
    sampling: Sampling = Sampling()
    generation: Generation = Generation()
    judge: LanguageJudge | None = Field(
        None, description="judge of the arms with judge=llm, and of the corpus in notebook 4"
    )
    reward: str = Field("rule", description="judge of the accuracy reward, see masters.judges.scorers")
    base: Path | None = Field(None, description="folder that paths start from; default: the profile's own")
    distillation: Distillation

    @property
    def folder(self) -> Path:
        """The folder that paths in the profile start from."""
        return self.base or PARAMS / self.name

    @property
    def teachers(self) -> list[str]:
        """The teachers that the notebooks compare: mid, if there is one, and large."""
        return [rung for rung in ("mid", "large") if rung in self.ladder]

    @model_validator(mode="after")
    def _tasks_have_names_of_their_own(self) -> "Profile":
        names = [task if isinstance(task, str) else task.name for task in self.tasks]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"tasks has {', '.join(sorted(twice))} twice; give each set its own name")
        return self


def profiles() -> list[str]:
    """Return the names of all profiles."""
    return sorted(path.parent.name for path in PARAMS.glob("*/profile.yaml"))


def load_profile(name: str) -> Profile:
    """Load a profile.

    Raises:
        ValueError: the profile does not exist, or a parameter is unknown, missing or out of range.
    """
    if name not in profiles():
        raise ValueError(f"there is no profile {name!r}; there are: {', '.join(profiles())}")
    path = PARAMS / name / "profile.yaml"
    profile = Profile.checked(read_parameters(path) | {"name": name}, path)
    placed = {
        rung: spec.model_copy(update={"path": place_of_model(spec.path, profile.folder)})
        if spec.path
        else spec
        for rung, spec in profile.ladder.items()
    }
    return profile.model_copy(update={"ladder": placed})


def place_of_model(name: str, base: Path) -> str:
    """Return a model's folder as an absolute path, or its hub name.

    Args:
        name: hub name, or a folder relative to ``base``.
        base: folder of the file that names the model.

    Raises:
        ValueError: there is no such folder and the name cannot be one of the hub.
    """
    folder = os.path.realpath(base / os.path.expanduser(name))
    if os.path.isdir(folder):  # unlike pathlib's, these three accept any text
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"no folder {folder}: give a model's folder relative to {base}, or a hub name")
    return name
