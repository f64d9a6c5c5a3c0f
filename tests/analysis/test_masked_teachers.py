"""One threshold for the whole model, against torch's own pruning, and where it differs from the paper's."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from masters.masking.teacher_mask import TeacherMask
from masters_book.analysis.masked_teachers import remove_smallest


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(50, 20), nn.Linear(20, 80))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_a_threshold_of_the_whole_model_is_that_of_torch(ratio: float) -> None:
    ours, theirs = layers(), layers()
    remove_smallest(ours, ratio)
    chosen = [(layer, "weight") for layer in theirs]
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=math.floor(ratio * 2600))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def test_it_removes_a_layer_of_small_weights_and_the_papers_does_not() -> None:
    model, other = layers(), layers()
    for each in (model, other):
        with torch.no_grad():
            each[0].weight.mul_(1e-6)
    remove_smallest(model, 1000 / 2600)
    assert not model[0].weight.any() and model[1].weight.all()
    with TeacherMask(other).apply(0.2):
        assert int((other[0].weight == 0).sum()) == 200 and int((other[1].weight == 0).sum()) == 320
