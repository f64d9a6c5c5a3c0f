"""One way of training for every phase: pretraining of the ladder, supervised training, distillation, Masters.

A phase differs from another only in where the responses come from (labels or the cache of responses) and in
its objective; both are data. What a step does stands in :mod:`masters.training.trainer`.

Which question is seen when, with which teacher at which mask ratio, is fixed before training begins
(:class:`masters.training.examples.Examples`), or decided at steps that are kept with every checkpoint
(:mod:`masters.training.plateau`), so a resumed run continues exactly where it was.
"""

import copy
import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from masters.data.questions import Questions
from masters.models import compatibility as fitting
from masters.models.attention import FLEX, attending
from masters.runtime import distributed
from masters.runtime.progress import report
from masters.settings import Fit, Watch
from masters.training import adapters, memory
from masters.training.checkpoints import Completer, last_checkpoint
from masters.training.examples import Collator, Examples
from masters.training.plateau import Decider, PlateauStages
from masters.training.trainer import MastersTrainer, Objective


@dataclass(frozen=True)
class Budget:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps.
        batch: questions a step.
        learning_rate: peak, or constant.
        schedule: ``linear`` decays to zero after a warm-up of 2 % of the steps; ``constant`` is the paper's.
        seed: of the trainer.
        save_every: steps between checkpoints.
        log_every: steps between log rows.
        share_rows: several questions in one row where they fit (:mod:`masters.models.packing`): the same
            losses up to rounding, faster where prompts are of very different lengths.
        weight_decay: of AdamW.
        planned: steps of the schedule, where this is the beginning of a longer run; None: those of this one.
    """

    steps: int
    batch: int
    learning_rate: float
    schedule: str = "linear"
    seed: int = 0
    save_every: int = 500
    log_every: int = 20
    share_rows: bool = False
    weight_decay: float = 0.0
    planned: int | None = None


def warmup_steps(budget: Budget) -> int:
    """Return the warm-up: 2 % of the steps, at least one, where the learning rate falls; else none."""
    return max(1, (budget.planned or budget.steps) // 50) if budget.schedule == "linear" else 0


def train(
    model: PreTrainedModel,
    questions: Questions,
    examples: Examples,
    objective: Objective,
    budget: Budget,
    folder: Path,
    name: str,
    fit: Fit | None = None,
    watch: Watch | None = None,
    plateau: PlateauStages | None = None,
) -> pd.DataFrame:
    """Train a model in place; killed at any moment and called again, it goes on from its last checkpoint.

    Behind torchrun or ``accelerate launch`` each process takes its part of every batch. Where the student
    is in shards (FSDP2, ZeRO-3) a copy is trained and rank 0 alone gets the trained weights into its model;
    with FSDP2 teachers and reference are in shards from then on.

    Args:
        model: in its initial state, on the device to train on; its weights become float32.
        questions: what the examples refer to.
        examples: in the order of the steps.
        objective: what is minimised.
        budget: steps, batch, learning rate, seed.
        folder: of the checkpoints, with one of the last step; a call with more steps begins there.
        name: of the run, for progress and messages.
        fit: LoRA, gradient checkpointing, bfloat16, accumulation; None: none of them.
        watch: when the run counts as diverged, and what is logged beside the loss.
        plateau: decides when a stage ends, where the run itself does; the examples follow it.

    Returns:
        One row a logged step: step, loss, learning_rate, grad_norm and the parts of the loss.

    Raises:
        ValueError: the number of examples is not steps times batch, or the batch cannot be shared evenly, or
            accelerate made another launch of it than was asked for.
        Diverged: the loss is no longer finite, or beyond what ``watch`` allows.
        MemoryError: the device is full; one line says what to change.
    """
    if len(examples) != budget.steps * budget.batch:
        raise ValueError(f"{name}: {len(examples)} examples for {budget.steps} steps of {budget.batch}")
    fit, watch, planned = fit or Fit(), watch or Watch(), budget.planned or budget.steps
    sharded = distributed.asked_for()
    parts = distributed.world_size() * fit.accumulate
    if budget.batch % parts:
        raise ValueError(
            f"{name}: a batch of {budget.batch} questions cannot be shared by {distributed.world_size()} "
            f"processes in {fit.accumulate} parts each"
        )
    if sharded and (fit.lora or watch.gradient_norms):
        raise ValueError(f"{name}: LoRA and gradient_norms need a whole student, not the shards of {sharded}")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=budget.steps,
        per_device_train_batch_size=budget.batch // parts,
        learning_rate=budget.learning_rate,
        lr_scheduler_type=budget.schedule,
        warmup_steps=warmup_steps(budget),
        weight_decay=budget.weight_decay,
        adam_beta2=0.98,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        logging_steps=budget.log_every,
        logging_nan_inf_filter=False,
        save_steps=budget.save_every,
        save_total_limit=2,
        seed=budget.seed,
        data_seed=budget.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        # Without use_cpu accelerate refuses bf16 on a CPU, and each rank of a CPU would train alone.
        use_cpu=model.device.type == "cpu" and sharded != "DEEPSPEED",
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=True,  # a vision tower has layers whose output nobody reads
        **adapters.arguments(fit),
    )
    place = model.device
    if model.dtype != torch.float32 and distributed.rank() == 0:
        stored = str(model.dtype).removeprefix("torch.")
        print(f"{name}: the {stored} weights are trained in float32", file=sys.stderr, flush=True)
    readable = fitting.fit([model, *objective.beside], questions)
    if sharded == "FSDP":
        distributed.name_layers(model)
    trained = adapters.prepare(copy.deepcopy(model.cpu()) if sharded else model, fit, budget.seed)
    trainer = MastersTrainer(
        model=trained,
        args=arguments,
        train_dataset=examples,
        data_collator=Collator(questions, readable, budget.share_rows, fit.responses_at_once),
        objective=objective,
        watch=watch,
        plateau=plateau,
        planned=planned,
        callbacks=[_Progress(name)],
    )
    if plateau is not None:
        trainer.add_callback(Decider(plateau, trainer.divergence))
    trainer.add_callback(Completer())
    distributed.check_launched(trainer.accelerator.num_processes, trainer.accelerator.distributed_type.name)
    if sharded == "FSDP":
        objective.shard()
    trainer.remove_callback(PrinterCallback)
    checkpoint = distributed.from_main(lambda: last_checkpoint(folder))
    if checkpoint is not None and plateau is not None:
        plateau.load(Path(checkpoint))
    _quiet = logging.getLogger("transformers.trainer")
    level = _quiet.level
    _quiet.setLevel(logging.ERROR)
    try:
        models = [adapters.whole(trained), *objective.beside]
        with attending(models, FLEX) if readable.flex else nullcontext():
            trainer.train(resume_from_checkpoint=checkpoint)
    except RuntimeError as error:
        if not memory.is_full(error):
            raise
        told = memory.advice(name, fit, budget.batch // parts, bool(objective.teachers))
        raise MemoryError(told) from None
    finally:
        _quiet.setLevel(level)
        for mask in objective.masks:
            mask.restore()
    if sharded:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if distributed.rank() == 0:
            distributed.load_whole(model, weights)
        model.to(place)  # type: ignore[arg-type]  # a decorator hides the parameter's type
    adapters.finish(trained)
    model.eval()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return pd.DataFrame(rows).drop(columns=["epoch"], errors="ignore")


class _Progress(TrainerCallback):
    """Reports how far the run is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if distributed.rank() == 0:
            report(f"training {self.name}", state.global_step, state.max_steps)
