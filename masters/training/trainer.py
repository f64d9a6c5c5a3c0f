"""What a step does: a ``transformers.Trainer`` whose unit is a question with its responses, in one row.

The loss is cross-entropy on labels or Eq. 11 on cached responses, with the log-probabilities of the stage's
teacher at its mask ratio from the cache or from the teacher in memory. Every term of it is logged.
"""

import math
import time
from collections.abc import Callable, Sequence
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
from masters.objective.diagnostics import Diverged, NotFinite, reason_to_stop
from masters.objective.logits import Logits, dense
from masters.objective.loss import cross_entropy, masters_loss
from masters.objective.options import Averaging, LossOptions
from masters.runtime import distributed
from masters.settings import Watch
from masters.training import adapters
from masters.training.examples import Batch


@dataclass
class Objective:
    """What is minimized.

    Attributes:
        options: of :func:`masters.objective.loss.masters_loss`; None for cross-entropy on labels.
        teachers: the teachers by index, if examples have no teacher log-probabilities.
        reference: the student before training, if a KL is wanted and examples have no reference.
        vocabulary: tokens of the shared tokenizer; rows of an output head beyond them do not count.
        choices: which weights of each teacher are masked; the paper's choice when empty.
        label_averaging: what the cross-entropy is a mean over, labels or tokens.
    """

    options: LossOptions | None = None
    teachers: Sequence[PreTrainedModel] = ()
    reference: PreTrainedModel | None = None
    vocabulary: int | None = None
    choices: Sequence[MaskChoice] = ()
    label_averaging: Averaging = "response"
    masks: list[TeacherMask] = field(init=False)

    def __post_init__(self) -> None:
        self._mask()

    def _mask(self) -> None:
        choices = self.choices or [PAPERS] * len(self.teachers)
        self.masks = [choice.mask(model) for choice, model in zip(choices, self.teachers, strict=True)]

    @property
    def averaging(self) -> Averaging:
        """What the loss is a mean over."""
        return self.options.averaging if self.options else self.label_averaging

    @property
    def beside(self) -> list[PreTrainedModel]:
        """Return the models that are in memory with the student: teachers and reference."""
        return [*self.teachers, *([self.reference] if self.reference else [])]

    def shard(self) -> None:
        """Shard them over all processes, permanently; their masks are those of the whole models."""
        for mask in self.masks:
            mask.restore()
        for model in self.beside:
            distributed.shard(model)
        self._mask()


@dataclass(frozen=True)
class Evaluation:
    """What is measured of the student while it is trained.

    Attributes:
        steps: steps between two measurements.
        score: returns the score of the student, which is in evaluation mode.
    """

    steps: int
    score: Callable[[PreTrainedModel], float]


def one_device(arguments: Any) -> None:
    """Keep a Trainer that no launcher started on one GPU.

    With several it would multiply the batch by their number and split it among copies of the model
    (``nn.DataParallel``), which cannot split a :class:`Batch`.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)


class MastersTrainer(Trainer):
    """``transformers.Trainer`` on packed questions with their responses, logging every term of the loss."""

    objective: Objective
    loss_is_scaled_for_ga = True  # by its share of the global batch, in compute_loss

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        watch: Watch | None = None,
        evaluation: Evaluation | None = None,
        **kwargs: Any,
    ) -> None:
        one_device(kwargs["args"])
        super().__init__(*args, **kwargs)
        self.evaluation = evaluation
        self.objective, self.watch = objective, watch or Watch()
        self._since = time.perf_counter()
        self._metrics: list[dict[str, float]] = []

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        chosen: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(chosen)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or adapters.whole(self.model) is not self.model:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # The names of saved weights may differ from those in memory. The Trainer's own method skips names
        # that it does not find in memory; from_pretrained translates them.
        model = self.model if model is None else model
        saved = type(model).from_pretrained(resume_from_checkpoint, use_safetensors=True, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())

    def _prepare_inputs(self, inputs: Any) -> Any:
        batch: Batch = inputs
        return batch.to(self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: operations are not counted."""
        return 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a :class:`Batch`, times its share of the global batch."""
        batch: Batch = inputs
        inner = self.accelerator.unwrap_model(model)

        def compute(batch: Batch) -> Tensor:
            with self.accelerator.autocast():  # which otherwise wraps the model's own forward only
                return self._loss(adapters.whole(inner), batch)

        loss = distributed.inside_forward(model, inner, compute, batch)
        if num_items_in_batch is not None:
            loss = loss * (self._weight(batch) * self.accelerator.num_processes / float(num_items_in_batch))
        whole = float(self.accelerator.reduce(loss.detach(), "sum"))
        if not math.isfinite(whole):
            raise NotFinite(
                f"the loss is {whole} at step {self.state.global_step}; lower the learning rate "
                f"({self.args.learning_rate:g}) or use the clipped ratio"
            )
        return (loss, {}) if return_outputs else loss

    def _weight(self, batch: Batch) -> int:
        """Return what the loss is a mean over: the number of responses, or of tokens."""
        mask = batch.packed.mask
        return int(mask.sum() if self.objective.averaging == "token" else mask.any(-1).sum())

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Return the same of the global batch, over all ranks and accumulated parts."""
        own = sum(map(self._weight, batch_samples))
        return self.accelerator.reduce(torch.tensor(float(own), device=device), "sum")

    def _loss(self, model: Any, batch: Batch) -> Tensor:
        """Return cross-entropy on labels, or Eq. 11 on cached responses."""
        packed, options = batch.packed, self.objective.options
        if batch.parts:
            logits = project(model, hidden_in_parts(model, batch.parts), self.objective.vocabulary)
        else:
            logits = response_projection(model, packed, self.objective.vocabulary)
        if options is None:
            self._metrics.append({})
            return cross_entropy(logits, packed.tokens, packed.mask, self.objective.averaging)
        loss = masters_loss(
            logits,
            self._teacher(batch),
            packed.tokens,
            packed.mask,
            accuracy=batch.accuracy,
            reference_logits=self._reference(batch),
            behavior_logprobs=batch.behavior,
            options=options,
        )
        self._metrics.append(loss.metrics | {"mask_ratio": batch.stage[1]})
        return loss.total

    @torch.no_grad()
    def _teacher(self, batch: Batch) -> Logits:
        if batch.teacher is not None:
            return batch.teacher
        index, ratio = batch.stage
        if self.objective.masks[index].ratio != ratio:
            self.objective.masks[index].apply(ratio)
        return self._scores(self.objective.teachers[index], batch.packed)

    @torch.no_grad()
    def _reference(self, batch: Batch) -> Logits | None:
        if batch.reference is not None or self.objective.reference is None:
            return batch.reference
        return self._scores(self.objective.reference, batch.packed)

    def _scores(self, model: Any, packed: PackedBatch) -> Logits:
        """Return the logits of a teacher or the reference, which may be sharded."""
        sharded = any(map(distributed.in_pieces, model.parameters()))

        def compute(packed: PackedBatch) -> Logits:
            made = response_projection(model, packed, self.objective.vocabulary)
            return dense(made) if sharded else made  # after its forward its head is sharded again

        return distributed.inside_forward(model, model, compute, packed)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return and log the student's score, which rank 0 measures."""
        assert self.evaluation is not None
        score, model = (
            self.evaluation.score,
            adapters.whole(self.accelerator.unwrap_model(self.model_wrapped)),
        )
        model.eval()  # the next step begins with train()
        logged = {"eval_score": distributed.from_main(lambda: score(model))}
        self.log(logged)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logged)
        return logged

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each metric since the last row, over all ranks."""
        if "loss" in logs and self._metrics:
            frame = pd.DataFrame([row for rows in distributed.gathered(self._metrics) for row in rows])
            logs |= {str(name): float(frame[name].mean()) for name in frame if frame[name].notna().any()}
            self._metrics = []
            now = time.perf_counter()
            logs["seconds"], self._since = now - self._since, now
            losses = [row["loss"] for row in self.state.log_history if "loss" in row] + [logs["loss"]]
            rows = self.state.max_steps // int(self.args.logging_steps)
            kl = logs.get("kl", float("nan"))
            if reason := reason_to_stop(losses, rows, kl, self.watch.kl, self.watch.growth):
                raise Diverged(
                    f"stopped at step {self.state.global_step}: {reason}; lower the learning rate "
                    f"({self.args.learning_rate:g}), raise beta or use the clipped ratio"
                )
        super().log(logs, start_time)
