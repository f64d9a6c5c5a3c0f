"""What tests/test_distributed.py starts under torchrun, and alone to compare: ``ranks.py FOLDER``.

Every process leaves ``FOLDER/<world size>-<rank>.pt`` with what it saw and what it ended with.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import small
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel, TrainingArguments

from masters import distributed
from masters.questions import Questions
from masters.training import Budget, Collator, Example, Examples, MastersTrainer, Objective, train

BUDGET = Budget(steps=6, batch=4, learning_rate=3e-3, schedule="constant", log_every=1, save_every=4)
TEXTS = ["the answer is {} .", "{} .", "it is a {} square .", "no , it is {}"]
STAGES = [(0, 0.2), (0, 0.1), (1, 0.0)]


def examples(asked: Questions, read: list[int]) -> Examples:
    """Groups of four responses; the later a question, the longer its responses, so no rank has as many tokens
    as another. Each stage holds for two steps."""

    def make(position: int) -> Example:
        read.append(position)
        index = position % len(asked)
        long = " , so" * (3 * index)
        responses = [small.tokens(text.format(asked.table["answer"][index]) + long) for text in TEXTS]
        stage = STAGES[position // BUDGET.batch // 2]
        return Example(index, responses, stage, accuracy=np.array([1, 0, 1, index % 2]))

    return Examples(BUDGET.steps * BUDGET.batch, make)


def models() -> tuple[PreTrainedModel, list[PreTrainedModel], PreTrainedModel]:
    teachers = [small.build(seed=1)[0], small.build(seed=2, width=32)[0]]
    return small.build()[0], teachers, small.build()[0]


def trained(asked: Questions, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A whole run through ``train``, watched from inside."""
    student, teachers, reference = models()
    seen: dict[str, Any] = {"read": [], "stages": [], "wrapper": set(), "processes": set()}

    class Watched(MastersTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **named: Any) -> Any:
            seen["stages"].append(inputs["stage"])
            seen["wrapper"].add(type(model).__name__)
            seen["processes"].add(self.accelerator.num_processes)
            return super().compute_loss(model, inputs, *args, **named)

    from masters import training

    training.MastersTrainer = Watched  # type: ignore[misc]
    objective = Objective(options, teachers, reference)
    log = train(student, asked, examples(asked, seen["read"]), objective, BUDGET, folder, "ranks", "cpu")
    training.MastersTrainer = MastersTrainer  # type: ignore[misc]
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    return seen | {"log": log.to_dict("list"), "weights": weights, "left": folder.exists()}


def sharded(asked: Questions, folder: Path) -> dict[str, Any]:
    """FSDP2 by hand: student, teacher and reference in shards of every rank, and the Trainer's own loss."""
    student, teachers, reference = models()
    objective = Objective({}, teachers[:1], reference)
    objective.masks[0].apply(0.2)  # before it is sharded: the smallest weights of all, not of a shard
    if distributed.world_size() > 1:
        for model in (student, teachers[0], reference):
            for layer in model.model.language_model.layers:
                fully_shard(layer)
            fully_shard(model)
    arguments = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = MastersTrainer(model=student, args=arguments, data_collator=Collator(asked), objective=objective)
    optimizer = torch.optim.AdamW(student.parameters(), lr=BUDGET.learning_rate)
    world, rank = distributed.world_size(), distributed.rank()
    own, losses = BUDGET.batch // world, []
    for step in range(4):
        start = rank * own
        inputs = Collator(asked)([examples(asked, [])[start + i] for i in range(own)])
        loss = trainer.compute_loss(student, inputs, num_items_in_batch=trainer._get_num_items_in_batch([inputs], "cpu"))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(distributed.gathered(float(loss.detach()))) / world)
    parameters = dict(student.named_parameters())
    local = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in parameters.values())
    kinds = {type(p).__name__ for p in parameters.values()} | {type(student).__mro__[1].__name__}
    whole: dict[str, Tensor] = {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for name, p in parameters.items()
    }
    return {"losses": losses, "weights": whole, "kinds": kinds, "local": local}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world, rank = distributed.world_size(), distributed.rank()
    asked = small.questions(folder / f"questions-{world}-{rank}")
    made: dict[str, Any] = {"world": world}
    distributed.begin()
    made["ddp"] = trained(asked, folder / f"ddp-{world}", {})
    made["tokens"] = trained(asked, folder / f"tokens-{world}", {"averaging": "token"})
    made["fsdp2"] = sharded(asked, folder / f"fsdp2-{world}")
    torch.save(made, folder / f"{world}-{rank}.pt")
    distributed.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
