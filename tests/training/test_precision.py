"""Weights stored in bfloat16: trained in float32, saved in bfloat16."""

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from masters.models.loading import save_student, stored_dtype
from masters.objective.options import LossOptions
from masters.settings import Lora, MemorySavings
from masters.training.examples import Example, Examples
from masters.training.train import Budget, train
from masters.training.trainer import Objective

torch.set_num_threads(1)


class NoProcessor:
    """Stands for a processor where only weights matter."""

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "processor").touch()


def read(folder: Path) -> PreTrainedModel:
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True)
    return model.eval()


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
@pytest.mark.parametrize(
    "savings",
    [MemorySavings(), MemorySavings(lora=Lora(rank=4)), MemorySavings(bf16=True)],
    ids=["all", "lora", "bf16"],
)
def test_a_bfloat16_checkpoint_trains_at_the_papers_rate_and_is_saved_in_bfloat16(
    family: str, savings: MemorySavings, tmp_path: Path
) -> None:
    here = families.setting(family)
    families.build(here.model.config).to(torch.bfloat16).save_pretrained(tmp_path / "student")
    student, reference = read(tmp_path / "student"), read(tmp_path / "student")
    teacher = families.build(student.config, 1).to(torch.bfloat16)
    assert student.dtype == stored_dtype(tmp_path / "student") == torch.bfloat16
    before = {name: p.detach().float() for name, p in student.named_parameters()}
    frequencies = {name: b.clone() for name, b in student.named_buffers() if b.dtype == torch.float32}
    # Adapters begin at 0: at the paper's rate they would move no weight by as much as bfloat16 rounds.
    rate = 1e-4 if savings.lora else 1e-6
    budget = Budget(steps=4, batch=3, learning_rate=rate, schedule="constant", log_every=1)

    def make(position: int) -> Example:
        index = position % 3
        return Example(index, here.responses[index], accuracy=np.array([1, 0, 1]))

    objective = Objective(LossOptions(), [teacher], reference)
    questions = here.questions(tmp_path / "questions")
    log = train(student, questions, Examples(12, make), objective, budget, tmp_path / "run", "t", savings)
    assert np.isfinite(log["loss"]).all()
    assert student.dtype == (torch.bfloat16 if savings.lora else torch.float32), (
        "frozen weights stay as stored"
    )
    weights = dict(student.named_parameters())
    changed = {name: float((weights[name] != before[name]).float().mean()) for name in before}
    trained = {name: share for name, share in changed.items() if share} if savings.lora else changed
    assert len(trained) > 8 and np.mean(list(trained.values())) > (0.3 if savings.lora else 0.8)
    save_student(student, NoProcessor(), tmp_path / "saved", stored_dtype(tmp_path / "student"))
    saved = read(tmp_path / "saved")
    assert saved.dtype == stored_dtype(tmp_path / "saved") == torch.bfloat16
    for name, weight in student.named_parameters():
        assert torch.equal(weight, saved.get_parameter(name)), "in memory and on disk are the same"
    for name, buffer in student.named_buffers():
        if name in frequencies:
            assert torch.equal(buffer, frequencies[name])


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} has no .*safetensors"):
        stored_dtype(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345678 nothing")
    with pytest.raises(ValueError, match=r"is damaged .*model\.safetensors"):
        stored_dtype(tmp_path)
