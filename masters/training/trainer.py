"""What a step does: a ``transformers.Trainer`` whose unit is a question with its responses, in one row.

The loss is cross-entropy on labels or Eq. 11 on cached responses, with the teacher of the step's stage at its
mask ratio, from the cache or run along. Every part of it is logged.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, Trainer

from masters.masking.choice import PAPERS, MaskChoice
from masters.masking.teacher_mask import TeacherMask
from masters.models.packing import PackedBatch, hidden_in_parts, project, response_projection
from masters.objective.diagnostics import Diverged, NotFinite, reason_to_stop, term_norms
from masters.objective.logits import Logits, dense
from masters.objective.loss import cross_entropy, masters_loss
from masters.objective.options import LossOptions
from masters.runtime import distributed
from masters.settings import Watch
from masters.training import adapters
from masters.training.examples import Example
from masters.training.plateau import PlateauStages


@dataclass
class Objective:
    """What is minimised.

    Attributes:
        options: of :func:`masters.objective.loss.masters_loss`; None for cross-entropy on labels.
        teachers: the teachers by index, when examples carry no teacher log-probabilities.
        reference: the student before training, when a KL is wanted and examples do not carry it.
        vocabulary: tokens that the shared tokenizer has; rows of an output head beyond them take no part.
        choices: of what is masked of each teacher; the paper's when empty.
    """

    options: LossOptions | None = None
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


class MastersTrainer(Trainer):
    """``transformers.Trainer`` on packed questions with their responses, logging every part of the loss."""

    objective: Objective
    loss_is_scaled_for_ga = True  # by its share of the global batch, in compute_loss

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        watch: Watch | None = None,
        plateau: PlateauStages | None = None,
        planned: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.objective, self.watch, self.plateau = objective, watch or Watch(), plateau
        self._planned = planned
        self._since = time.perf_counter()
        self._parts: list[dict[str, float]] = []
        self._norms: dict[str, float] = {}

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """That of the whole run, of which this may be the beginning."""
        return super().create_scheduler(self._planned or num_training_steps, optimizer)

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
        """Return the loss of these questions, times their share of the global batch."""
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
            raise NotFinite(
                f"the loss is {whole} at step {self.state.global_step}; lower the learning rate "
                f"({self.args.learning_rate:g}) or use the clipped ratio"
            )
        return (loss, {}) if return_outputs else loss

    def _weight(self, inputs: dict[str, Any]) -> int:
        """What the loss is a mean over: responses, or tokens where an objective averages over those."""
        mask: Tensor = inputs["batch"].mask
        options = self.objective.options
        by_token = options is not None and options.averaging == "token"
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
                behavior_logprobs=inputs.get("behavior"),
                options=options,
            )
            loss, parts = result.total, result.metrics | {"mask_ratio": inputs["stage"][1]}
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

    @torch.no_grad()
    def divergence(self, examples: Sequence[Example]) -> float:
        """The student's divergence from the teacher on some examples of one stage, as the loss averages it.

        The ranks share the batches. Where weights are in shards all read equally many: what is left over is
        read and not counted.
        """
        size, world = self.args.per_device_train_batch_size, distributed.world_size()
        batches = [examples[start : start + size] for start in range(0, len(examples), size)]
        collate: Any = self.data_collator
        self.model_wrapped.eval()  # the next step begins with train()
        found: list[tuple[int, float]] = []
        for place in range(distributed.rank(), -(-len(batches) // world) * world, world):
            inputs: dict[str, Any] = collate(batches[place % len(batches)])
            value = self._divergence(inputs, inputs["batch"].to(self.args.device))
            if place < len(batches):
                found.append((self._weight(inputs), value))
        counted = [one for part in distributed.gathered(found) for one in part]
        return sum(weight * value for weight, value in counted) / sum(weight for weight, _ in counted)

    def _divergence(self, inputs: dict[str, Any], batch: PackedBatch) -> float:
        """Of one batch, nats a token, without what a policy term needs."""
        inner = self.accelerator.unwrap_model(self.model_wrapped)
        options = (self.objective.options or LossOptions()).model_copy(update={"rewards": ()})

        def compute(batch: PackedBatch) -> float:
            with self.accelerator.autocast():
                logits = response_projection(adapters.whole(inner), batch, self.objective.vocabulary)
                teacher = self._teacher(inputs, batch)
                loss = masters_loss(logits, teacher, batch.tokens, batch.mask, options=options)
                return loss.metrics["divergence"]

        return distributed.inside_forward(self.model_wrapped, inner, compute, batch)

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
        if rows is None or options is None or not options.rewards:  # one term: grad_norm is its
            return False
        step = self.state.global_step + 1
        return not self._norms and step % (rows * self.args.logging_steps) == 0

    def _norms_of_terms(self, student: Any, inputs: dict[str, Any], batch: PackedBatch) -> dict[str, float]:
        """Of this rank's first questions, before gradients are clipped."""
        options = self.objective.options

        def loss(**variant: Any) -> Tensor:
            assert options is not None  # cross-entropy has one term
            self.objective.options = options.model_copy(update=variant)
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
            if self.plateau is not None:
                logs |= self.plateau.logged(self.state.global_step - 1)
            now = time.perf_counter()
            logs["seconds"], self._since = now - self._since, now
            losses = [row["loss"] for row in self.state.log_history if "loss" in row] + [logs["loss"]]
            rows = (self._planned or self.state.max_steps) // int(self.args.logging_steps)
            kl = logs.get("kl", float("nan"))
            if reason := reason_to_stop(losses, rows, kl, self.watch.kl, self.watch.growth):
                raise Diverged(
                    f"stopped at step {self.state.global_step}: {reason}; lower the learning rate "
                    f"({self.args.learning_rate:g}), raise beta or use the clipped ratio"
                )
        super().log(logs, start_time)
