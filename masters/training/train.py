"""One way of training for every phase: the small models of the ladder, supervised training, distillation.

Phases differ only in where the responses come from (labels or the cache) and in the objective; both are data.
:mod:`masters.training.trainer` says what a step does.

The order of the questions, teachers and mask ratios is fixed before training begins
(:class:`masters.training.examples.Examples`), so a resumed run continues exactly where it stopped.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from masters.data.questions import Questions
from masters.models import compatibility
from masters.runtime import distributed
from masters.runtime.files import full_disk_error
from masters.runtime.memory import is_full
from masters.runtime.progress import report
from masters.settings import MemorySavings, TrainerOptions, Watch
from masters.training import adapters, memory
from masters.training.checkpoints import Completer, last_checkpoint
from masters.training.examples import Collator, Examples
from masters.training.trainer import Evaluation, MastersTrainer, Objective

# Arguments that follow from settings of masters, or that would take effect behind its back.
TAKEN = {
    *(
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "activation_checkpointing",
        "bf16",
        "fp16",
    ),
    *("num_train_epochs", "remove_unused_columns", "use_cpu", "load_best_model_at_end", "push_to_hub"),
}


@dataclass(frozen=True)
class Budget:
    """How long, how fast and with which optimizer to train.

    Attributes:
        learning_rate: constant, or the peak of a linear schedule.
        schedule: ``linear`` decays to zero; ``constant`` is the paper's.
        seed: of the trainer, and of the sampling in an online run.
        log_every: steps between log rows.
        weight_decay: of AdamW.
        options: warm-up, optimizer, checkpoints and trackers.
    """

    steps: int
    batch: int
    learning_rate: float
    schedule: str = "linear"
    seed: int = 0
    log_every: int = 20
    weight_decay: float = 0.0
    options: TrainerOptions = field(default_factory=TrainerOptions)

    @property
    def warmup_steps(self) -> int:
        """Return the steps of the warm-up, at least one with the linear schedule."""
        if self.options.warmup_ratio is not None:
            return round(self.options.warmup_ratio * self.steps)
        return max(1, self.steps // 50) if self.schedule == "linear" else 0

    def on_each_process(self, accumulate: int) -> int:
        """Return the questions that a process reads at once; ``ValueError`` if not all read as many."""
        processes = distributed.world_size()
        if self.batch % (processes * accumulate):
            raise ValueError(
                f"a batch of {self.batch} questions cannot be shared by {processes} processes in "
                f"{accumulate} parts each: change batch, accumulate or the number of processes"
            )
        return self.batch // (processes * accumulate)

    def arguments(self, folder: Path, **fixed: Any) -> dict[str, Any]:
        """Return arguments of ``TrainingArguments`` or of a subclass.

        Args:
            fixed: arguments that follow from other settings.

        Raises:
            ValueError: ``options.args`` has an unknown name, or sets what another setting decides.
        """
        options = self.options
        constant_first = self.schedule == "constant" and self.warmup_steps > 0
        decided = (
            {"save_strategy": "steps"}
            | fixed
            | {
                "output_dir": str(folder),
                "max_steps": self.steps,
                "learning_rate": self.learning_rate,
                "lr_scheduler_type": "constant_with_warmup" if constant_first else self.schedule,
                "warmup_steps": self.warmup_steps,
                "max_grad_norm": options.max_grad_norm,
                "optim": options.optim,
                "save_steps": options.save_steps,
                "logging_steps": self.log_every,
                "logging_nan_inf_filter": False,
                "seed": self.seed,
                "data_seed": self.seed,
                "report_to": list(options.report_to),
            }
        )
        known = {one.name for one in fields(TrainingArguments)}
        if options.optim not in {one.value for one in OptimizerNames}:
            raise ValueError(
                f"optim: transformers has no optimizer {options.optim!r}; adamw_torch_fused is one"
            )
        available = get_available_reporting_integrations()
        if absent := [one for one in options.report_to if one not in available]:
            raise ValueError(
                f"report_to: {absent[0]!r} is not a tracker of transformers, or its package is not installed "
                f"(installed: {', '.join(available) or 'none'})"
            )
        for name in options.args:
            if name not in known:
                raise ValueError(f"args: transformers.TrainingArguments has no {name!r}; remove it")
            if name in decided or name in TAKEN or name.startswith("eval_"):
                raise ValueError(f"args cannot set {name!r}, which follows from another setting; remove it")
        usual = {
            "weight_decay": self.weight_decay,
            "adam_beta2": 0.98,
            "save_total_limit": 2,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        return usual | options.args | decided


def train(
    model: PreTrainedModel,
    questions: Questions,
    examples: Examples,
    objective: Objective,
    budget: Budget,
    folder: Path,
    name: str,
    savings: MemorySavings | None = None,
    watch: Watch | None = None,
    evaluation: Evaluation | None = None,
) -> pd.DataFrame:
    """Train a model in place; killed and called again, it continues from its last checkpoint.

    Under torchrun or ``accelerate launch`` each process takes its share of every batch. If the student is
    sharded (FSDP2, ZeRO-3), a copy is trained and only rank 0 gets the trained weights; with FSDP2 teachers
    and reference stay sharded.

    Args:
        model: the student in its initial state, on the device to train on; its weights become float32,
            except bfloat16 ones with LoRA.
        examples: in the order of the steps.
        folder: of the checkpoints, with one of the last step; a call with more steps begins there. The caller
            removes it once the model is saved.
        name: of the run, for progress and messages.
        evaluation: what is measured of the student during training.

    Returns:
        One row per logged step: step, loss, learning_rate, grad_norm and the metrics of the loss. With
        ``evaluation`` one more per measurement, which has step and eval_score alone.

    Raises:
        ValueError: the number of examples is not steps times batch, the batch cannot be shared evenly, an
            argument is unknown, or accelerate uses another setup than the launch requested.
        Diverged: the loss is not finite, or beyond what ``watch`` allows.
        MemoryError: the device is full; one line says what to change.
        OSError: the disk is full.
    """
    if len(examples) != budget.steps * budget.batch:
        raise ValueError(f"{name}: {len(examples)} examples for {budget.steps} steps of {budget.batch}")
    savings, watch, sharded = savings or MemorySavings(), watch or Watch(), distributed.asked_for()
    at_once = budget.on_each_process(savings.accumulate)
    if sharded and savings.lora:
        raise ValueError(f"{name}: LoRA needs a whole student, not the shards of {sharded}")
    if sharded and evaluation:
        raise ValueError(
            f"{name}: eval_steps needs a whole student, not the shards of {sharded}: set it to null"
        )
    measured = {"eval_strategy": "steps", "eval_steps": evaluation.steps} if evaluation else {}
    place = model.device
    arguments = budget.arguments(
        folder,
        per_device_train_batch_size=at_once,
        remove_unused_columns=False,
        # Without use_cpu accelerate refuses bf16 on a CPU, and each rank of a CPU would train alone.
        use_cpu=place.type == "cpu" and sharded != "DEEPSPEED",
        ddp_find_unused_parameters=True,  # the output of some layers of a vision tower is not used
        **adapters.arguments(savings),
        **measured,
    )
    if savings.lora is None or model.dtype is torch.float16:  # whose small gradients would vanish
        adapters.in_float32(model, name)
    readable = compatibility.measure([model, *objective.beside], questions)
    if sharded == "FSDP":
        distributed.name_layers(model)
    trained = adapters.prepare(copy.deepcopy(model.cpu()) if sharded else model, savings, budget.seed)
    trainer = MastersTrainer(
        model=trained,
        args=TrainingArguments(**arguments),
        train_dataset=examples,
        data_collator=Collator(questions, readable, savings.responses_at_once),
        objective=objective,
        watch=watch,
        evaluation=evaluation,
        eval_dataset=examples if evaluation else None,  # which the Trainer asks for and nobody reads
        callbacks=[_Progress(name)],
    )
    trainer.add_callback(Completer())
    trainer.remove_callback(PrinterCallback)
    distributed.check_launched(trainer.accelerator.num_processes, trainer.accelerator.distributed_type.name)
    if sharded == "FSDP":
        objective.shard()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = distributed.from_main(lambda: last_checkpoint(folder))
    try:
        with quiet("transformers.trainer"), full_disk_error(folder):
            trainer.train(resume_from_checkpoint=checkpoint)
    except (RuntimeError, MemoryError) as error:
        if not is_full(error):
            raise
        advice = memory.advice(name, savings, at_once, bool(objective.teachers))
        raise MemoryError(advice) from None
    finally:
        for mask in objective.masks:
            mask.restore()
    if sharded:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if distributed.rank() == 0:
            distributed.load_whole(model, weights)
        model.to(place)  # type: ignore[arg-type]  # a decorator hides the parameter's type
    adapters.finish(trained)
    model.eval()
    rows = [row for row in trainer.state.log_history if "loss" in row or "eval_score" in row]
    return pd.DataFrame(rows).drop(columns=["epoch"], errors="ignore")


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Silence loggers, except for errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Progress(TrainerCallback):
    """Reports how far the run is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if distributed.rank() == 0:
            report(f"training {self.name}", state.global_step, state.max_steps)
