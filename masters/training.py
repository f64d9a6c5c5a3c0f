"""One trainer for every phase: pretraining of the ladder, supervised training, distillation and Masters.

A subclass of ``transformers.Trainer`` whose unit is a question with its responses, packed into one row. A
phase differs from another only in where the responses come from (labels or the cache of responses) and in
its objective; both are data.

Which question is seen when, with which teacher at which mask ratio, is fixed before training begins
(:class:`masters.batches.Examples`), so a resumed run continues exactly where it was.
"""

import copy
import logging
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from masters import adapters, distributed, fitting, memory
from masters.attention import flex_attention
from masters.batches import Collator, Examples
from masters.health import Diverged, reason_to_stop, term_norms
from masters.logits import Logits, dense
from masters.mask_choice import PAPERS, MaskChoice
from masters.masking import TeacherMask
from masters.objective import cross_entropy, masters_loss
from masters.packing import PackedBatch, hidden_in_parts, project, response_projection
from masters.progress import report
from masters.questions import Questions
from masters.settings import Fit, Watch

COMPLETE = "complete"  # stands in a checkpoint once all its files are on disk


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
        share_rows: several questions in one row where they fit (:mod:`masters.packing`): the same losses up
            to rounding, faster where prompts are of very different lengths.
    """

    steps: int
    batch: int
    learning_rate: float
    schedule: str = "linear"
    seed: int = 0
    save_every: int = 500
    log_every: int = 20
    share_rows: bool = False


@dataclass
class Objective:
    """What is minimised.

    Attributes:
        options: arguments of :func:`masters.objective.masters_loss`, or None for cross-entropy on labels.
        teachers: the teachers by index, when examples carry no teacher log-probabilities.
        reference: the student before training, when a KL is wanted and examples do not carry it.
        vocabulary: tokens that the shared tokenizer has; rows of an output head beyond them take no part.
        choices: of what is masked of each teacher; the paper's when empty.
    """

    options: dict[str, Any] | None = None
    teachers: Sequence[PreTrainedModel] = ()
    reference: PreTrainedModel | None = None
    vocabulary: int | None = None
    choices: Sequence[MaskChoice] = ()
    masks: list[TeacherMask] = field(init=False)

    def __post_init__(self) -> None:
        self._mask()

    def _mask(self) -> None:
        choices = self.choices or [PAPERS] * len(self.teachers)
        self.masks = [choice.mask(model) for choice, model in zip(choices, self.teachers, strict=True)]

    @property
    def beside(self) -> list[PreTrainedModel]:
        """The models that run along with the student: teachers and reference."""
        return [*self.teachers, *([self.reference] if self.reference else [])]

    def shard(self) -> None:
        """Spread them over all processes, for good; masked they are as the whole ones would be."""
        for mask in self.masks:
            mask.restore()
        for model in self.beside:
            distributed.shard(model)
        self._mask()


def train(
    model: PreTrainedModel,
    questions: Questions,
    examples: Examples,
    objective: Objective,
    budget: Budget,
    folder: Path,
    name: str,
    device: str | None = None,
    fit: Fit | None = None,
    watch: Watch | None = None,
    goes_on: bool = False,
) -> pd.DataFrame:
    """Train a model in place; killed at any moment and called again, it goes on from its last checkpoint.

    Behind torchrun or ``accelerate launch`` each process takes its part of every batch. Where the student
    is in shards (FSDP2, ZeRO-3) a copy is trained and rank 0 alone gets the trained weights into its model;
    with FSDP2 teachers and reference are in shards from then on.

    Args:
        model: what is trained, in its initial state.
        questions: what the examples refer to.
        examples: in the order of the steps.
        objective: what is minimised.
        budget: steps, batch, learning rate, seed.
        folder: for checkpoints; removed when training ends.
        name: of the run, for progress and messages.
        device: None takes the device ``transformers`` finds.
        fit: LoRA, gradient checkpointing, bfloat16, accumulation; None: none of them.
        watch: when the run counts as diverged, and what is logged beside the loss.
        goes_on: the folder stays, with a checkpoint of the last step: a call with more steps begins there.

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
    fit, watch = fit or Fit(), watch or Watch()
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
        warmup_steps=max(1, budget.steps // 50) if budget.schedule == "linear" else 0,
        weight_decay=0.01 if budget.schedule == "linear" else 0.0,
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
        use_cpu=device == "cpu" or distributed.needs_cpu(),
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=True,  # a vision tower has layers whose output nobody reads
        **adapters.arguments(fit),
    )
    place = model.device
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
        callbacks=[_Watch(name)],
    )
    distributed.check_launched(trainer.accelerator.num_processes, trainer.accelerator.distributed_type.name)
    if sharded == "FSDP":
        objective.shard()
    trainer.remove_callback(PrinterCallback)
    _quiet = logging.getLogger("transformers.trainer")
    level = _quiet.level
    _quiet.setLevel(logging.ERROR)
    try:
        with flex_attention([adapters.whole(trained), *objective.beside]) if readable.flex else nullcontext():
            trainer.train(resume_from_checkpoint=distributed.from_main(lambda: last_checkpoint(folder)))
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
    if distributed.rank() == 0 and not goes_on:
        shutil.rmtree(folder, ignore_errors=True)
    distributed.wait()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return pd.DataFrame(rows).drop(columns=["epoch"], errors="ignore")


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; halves that a kill left behind are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in found:
        if not (path / COMPLETE).is_file():
            shutil.rmtree(path)
    whole = [path for path in found if path.is_dir()]
    return str(whole[-1]) if whole else None


class MastersTrainer(Trainer):
    """``transformers.Trainer`` on packed questions with their responses, logging every part of the loss."""

    objective: Objective
    loss_is_scaled_for_ga = True  # by its share of the global batch, in compute_loss

    def __init__(self, *args: Any, objective: Objective, watch: Watch | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective, self.watch = objective, watch or Watch()
        self._parts: list[dict[str, float]] = []
        self._norms: dict[str, float] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        chosen: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(chosen)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or adapters.whole(self.model) is not self.model:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # A saved model's names of weights may differ from those in memory. The Trainer's own method loads
        # what it finds under the names in memory, and passes over the rest; from_pretrained translates.
        model = self.model if model is None else model
        saved = type(model).from_pretrained(resume_from_checkpoint, use_safetensors=True, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of these questions, times their share of the global batch (:mod:`masters.distributed`)."""
        batch: PackedBatch = inputs["batch"].to(self.args.device)
        inner = self.accelerator.unwrap_model(model)
        student = adapters.whole(inner)

        def compute(batch: PackedBatch) -> Tensor:
            with self.accelerator.autocast():  # around a forward of their own only, otherwise
                return self._loss(student, inputs, batch)

        if self._norms_are_due():
            self._norms = self._norms_of_terms(student, inputs, batch)
        loss = distributed.inside_forward(model, inner, compute, batch)
        if num_items_in_batch is not None:
            loss = loss * (self._weight(inputs) * self.accelerator.num_processes / float(num_items_in_batch))
        whole = float(self.accelerator.reduce(loss.detach(), "sum"))
        if not math.isfinite(whole):
            raise Diverged(
                f"the loss is {whole} at step {self.state.global_step}; lower the learning rate "
                f"({self.args.learning_rate:g}) or use the clipped ratio"
            )
        return (loss, {}) if return_outputs else loss

    def _weight(self, inputs: dict[str, Any]) -> int:
        """What the loss is a mean over: responses, or tokens where an objective averages over those."""
        mask: Tensor = inputs["batch"].mask
        by_token = (self.objective.options or {}).get("averaging") == "token"
        return int(mask.sum() if by_token else mask.any(-1).sum())

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor:
        """The same of the global batch: of all ranks, and all parts that a rank takes one after the other."""
        own = sum(self._weight(inputs) for inputs in batch_samples)
        return self.accelerator.reduce(torch.tensor(float(own), device=device), "sum")

    def _loss(self, model: Any, inputs: dict[str, Any], batch: PackedBatch) -> Tensor:
        """Cross-entropy on labels, or Eq. 11 on cached responses."""
        if "parts" in inputs:
            hidden = hidden_in_parts(model, [part.to(self.args.device) for part in inputs["parts"]])
            logits = project(model, hidden, self.objective.vocabulary)
        else:
            logits = response_projection(model, batch, self.objective.vocabulary)
        options = self.objective.options
        if options is None:
            loss, parts = cross_entropy(logits, batch.tokens, batch.mask), {}
        else:
            result = masters_loss(
                logits,
                self._teacher(inputs, batch),
                batch.tokens,
                batch.mask,
                accuracy=inputs.get("accuracy"),
                reference_logits=self._reference(inputs, batch),
                behaviour_logprobs=inputs.get("behaviour"),
                **options,
            )
            loss, parts = result.total, result.parts | {"mask_ratio": inputs["stage"][1]}
        self._parts.append(parts)
        return loss

    @torch.no_grad()
    def _teacher(self, inputs: dict[str, Any], batch: PackedBatch) -> Logits:
        if "teacher" in inputs:
            cached: Logits = inputs["teacher"]
            return cached
        index, ratio = inputs["stage"]
        if self.objective.masks[index].ratio != ratio:
            self.objective.masks[index].apply(ratio)
        return self._scores(self.objective.teachers[index], batch)

    @torch.no_grad()
    def _reference(self, inputs: dict[str, Any], batch: PackedBatch) -> Logits | None:
        if "reference" in inputs or self.objective.reference is None:
            return inputs.get("reference")
        return self._scores(self.objective.reference, batch)

    def _scores(self, model: Any, batch: PackedBatch) -> Logits:
        """Of a model that may be sharded, and is not in the middle of its forward."""
        sharded = distributed.is_sharded(model)

        def compute(batch: PackedBatch) -> Logits:
            made = response_projection(model, batch, self.objective.vocabulary)
            return dense(made) if sharded else made  # behind its forward, its head is in pieces again

        return distributed.inside_forward(model, model, compute, batch)

    def _norms_are_due(self) -> bool:
        """On the first part of the last step of every ``watch.gradient_norms``-th log row."""
        rows, options = self.watch.gradient_norms, self.objective.options
        if rows is None or options is None or not options.get("rewards", True):  # one term: grad_norm is its
            return False
        step = self.state.global_step + 1
        return not self._norms and step % (rows * self.args.logging_steps) == 0

    def _norms_of_terms(self, student: Any, inputs: dict[str, Any], batch: PackedBatch) -> dict[str, float]:
        """Of this rank's first questions, before gradients are clipped."""
        options = self.objective.options or {}

        def loss(**variant: Any) -> Tensor:
            self.objective.options = options | variant
            try:
                with self.accelerator.autocast():
                    found = self._loss(student, inputs, batch)
            finally:
                self.objective.options = options
            self._parts.pop()  # this is no step
            return found

        return term_norms(loss, [p for p in student.parameters() if p.requires_grad])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each part of the loss since the last row, over all ranks."""
        if "loss" in logs and self._parts:
            frame = pd.DataFrame([row for rows in distributed.gathered(self._parts) for row in rows])
            logs |= {str(name): float(frame[name].mean()) for name in frame if frame[name].notna().any()}
            for found in distributed.gathered(self._norms):
                for term, value in found.items():
                    logs[term] = logs.get(term, 0.0) + value / distributed.world_size()
            self._parts, self._norms = [], {}
            losses = [row["loss"] for row in self.state.log_history if "loss" in row] + [logs["loss"]]
            rows = self.state.max_steps // int(self.args.logging_steps)
            kl = logs.get("kl", float("nan"))
            if reason := reason_to_stop(losses, rows, kl, self.watch.kl, self.watch.growth):
                raise Diverged(
                    f"stopped at step {self.state.global_step}: {reason}; lower the learning rate "
                    f"({self.args.learning_rate:g}), raise beta or use the clipped ratio"
                )
        super().log(logs, start_time)


class _Watch(TrainerCallback):
    """Reports progress, and marks a checkpoint as complete once it is on disk."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if distributed.rank() == 0:
            report(f"training {self.name}", state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        distributed.wait()  # every rank has written its part
        if distributed.rank() == 0:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
