"""What test_distributed.py starts under torchrun, and alone to compare: ``ranks.py FOLDER KIND ...``.

Every process leaves ``FOLDER/<first kind>-<world size>-<rank>.pt`` with what it saw and what it ended with.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from labs import here
from labs import profile as tiny_profile
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, TrainingArguments

from masters.data.questions import Questions
from masters.experiments.lab import Lab
from masters.experiments.results import run_arm
from masters.objective.diagnostics import Diverged
from masters.objective.options import LossOptions
from masters.runtime import distributed
from masters.settings import TrainerOptions
from masters.training import train as training
from masters.training.examples import Collator, Example, Examples
from masters.training.train import Budget, train
from masters.training.trainer import MastersTrainer, Objective

SAVING = TrainerOptions(save_steps=4)
BUDGET = Budget(steps=6, batch=4, learning_rate=3e-3, schedule="constant", log_every=1, options=SAVING)
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
    seen: dict[str, Any] = {"read": [], "stages": [], "wrapper": set(), "processes": set(), "beside": set()}

    class Watched(MastersTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
            seen["stages"].append(inputs.stage)
            seen["wrapper"].add(type(model).__name__)
            seen["processes"].add(self.accelerator.num_processes)
            seen["beside"] |= {type(p).__name__ for m in self.objective.beside for p in m.parameters()}
            return super().compute_loss(model, inputs, *args, **named)

    training.MastersTrainer = Watched  # type: ignore[misc]
    objective = Objective(LossOptions(**options), teachers, reference)
    log = train(student, asked, examples(asked, seen["read"]), objective, BUDGET, folder, "ranks")
    training.MastersTrainer = MastersTrainer  # type: ignore[misc]
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    return seen | {"log": log.to_dict("list"), "weights": weights}


def teachers_in_shards(asked: Questions, folder: Path) -> dict[str, Any]:
    """A run that takes itself for one of FSDP2, which accelerate has on accelerators only: its student is
    whole, all the rest in shards."""
    if distributed.world_size() == 1:
        return {}  # nothing to share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "asked_for", lambda: "FSDP")
        patch.setattr(distributed, "check_launched", lambda *_: None)
        return trained(asked, folder, {})


def stopped_at(step: int, error: BaseException | None, ranks: tuple[int, ...]) -> type[MastersTrainer]:
    """A trainer that raises at a step on some ranks; without an error, whose loss is NaN there."""

    class Stopped(MastersTrainer):
        def _loss(self, *args: Any) -> Tensor:
            loss = super()._loss(*args)
            if self.state.global_step == step and distributed.rank() in ranks:
                if error is not None:
                    raise error
                return loss * float("nan")
            return loss

    return Stopped


def resumed(asked: Questions, folder: Path) -> dict[str, Any]:
    """Interrupted on all ranks after the checkpoint of step 4, and started again."""
    training.MastersTrainer = stopped_at(5, KeyboardInterrupt(), (0, 1))  # type: ignore[misc]
    student, teachers, reference = models()
    rest: tuple[Any, ...] = (Objective(LossOptions(), teachers, reference), BUDGET, folder, "ranks")
    try:
        train(student, asked, examples(asked, []), *rest)
    except KeyboardInterrupt:
        distributed.wait()
    left = sorted(path.name for path in folder.glob("checkpoint-*/complete"))
    seen = trained(asked, folder, {})
    return seen | {"left": left}


def diverged(asked: Questions, folder: Path) -> str:
    """What every rank is told when the loss of one is NaN."""
    training.MastersTrainer = stopped_at(2, None, (distributed.world_size() - 1,))  # type: ignore[misc]
    student, teachers, reference = models()
    rest: tuple[Any, ...] = (Objective(LossOptions(), teachers, reference), BUDGET, folder, "ranks")
    try:
        train(student, asked, examples(asked, []), *rest)
    except Diverged as error:
        return str(error)
    finally:
        training.MastersTrainer = MastersTrainer  # type: ignore[misc]
    return "it did not stop"


def steps(asked: Questions, folder: Path, kind: str) -> dict[str, Any]:
    """Four steps by hand with the Trainer's own loss, on a student in shards of every rank.

    With ``fsdp2`` teacher and reference are in shards too, with ``zero3`` the student alone.
    """
    world, rank = distributed.world_size(), distributed.rank()
    student, teachers, reference = models()
    objective = Objective(LossOptions(), teachers[:1], reference)
    if kind == "fsdp2" and world > 1:
        distributed.shard(student)
        objective.shard()
    arguments = TrainingArguments(str(folder), report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = MastersTrainer(
        model=student, args=arguments, data_collator=Collator(asked), objective=objective
    )
    optimizer: Any = torch.optim.AdamW(student.parameters(), lr=BUDGET.learning_rate)
    wrapper: Any = student
    if kind == "zero3" and world > 1:
        import deepspeed

        settings = {
            "train_micro_batch_size_per_gpu": BUDGET.batch // world,
            "zero_optimization": {
                "stage": 3,
                "stage3_param_persistence_threshold": 0,
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": 0.0,  # 1.0 where nothing is said
        }
        wrapper, optimizer, _, _ = deepspeed.initialize(model=student, optimizer=optimizer, config=settings)
    own, losses = BUDGET.batch // world, []
    for _ in range(4):
        inputs = Collator(asked)([examples(asked, [])[rank * own + i] for i in range(own)])
        items = trainer._get_num_items_in_batch([inputs], torch.device("cpu"))
        loss = trainer.compute_loss(wrapper, inputs, num_items_in_batch=items)
        if wrapper is student:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            wrapper.backward(loss)
            wrapper.step()
        losses.append(sum(distributed.gathered(float(loss.detach()))) / world)
    parameters = dict(student.named_parameters())
    found = {
        "losses": losses,
        "wrapper": type(wrapper).__name__,
        "kinds": {type(p).__name__ for p in parameters.values()} | {type(student).__mro__[1].__name__},
        "beside": {type(p).__name__ for m in objective.beside for p in m.parameters()},
        "ratio": objective.masks[0].ratio,
        "local": sum(_local(p).numel() for p in parameters.values()),
    }
    gathered: dict[str, Tensor] = dict(student.state_dict())
    if kind == "fsdp2" and world > 1:  # as accelerate does it, which does not shard on a CPU
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
        gathered = get_model_state_dict(student, options=options)
    elif wrapper is not student:
        gathered = wrapper._zero3_consolidated_16bit_state_dict()
    taken, _, _ = models()
    if rank == 0:
        distributed.load_whole(taken, gathered)
        found["taken"] = {name: p.detach().clone() for name, p in taken.named_parameters()}
    return found | {"weights": {name: _whole(p) for name, p in parameters.items()}}


def _local(parameter: Any) -> Tensor:
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def _whole(parameter: Any) -> Tensor:
    if hasattr(parameter, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach()


def whole_run() -> dict[str, Any]:
    """An arm from the questions to its result, as ``masters train`` runs it."""
    lab = Lab(tiny_profile())
    if distributed.world_size() == 1:
        Lab.parallel = here  # type: ignore[method-assign]
    folder = run_arm(lab, "masters", 0)
    return {
        "result": json.loads((folder / "result.json").read_text()),
        "log": pd.read_parquet(folder / "log.parquet"),
    }


def main(folder: Path, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    world, rank = distributed.world_size(), distributed.rank()
    asked = small.questions(folder / f"questions-{world}-{rank}-{kinds[0]}")
    distributed.begin()
    make = {
        "ddp": lambda place: trained(asked, place, {}),
        "tokens": lambda place: trained(asked, place, {"averaging": "token"}),
        "resumed": lambda place: resumed(asked, place),
        "diverged": lambda place: diverged(asked, place),
        "shards": lambda place: teachers_in_shards(asked, place),
        "fsdp2": lambda place: steps(asked, place, "fsdp2"),
        "zero3": lambda place: steps(asked, place, "zero3"),
        "run": lambda place: whole_run(),
    }
    made = {kind: make[kind](folder / f"{kind}-{world}") for kind in kinds}
    torch.save(made, folder / f"{kinds[0]}-{world}-{rank}.pt")
    distributed.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
