"""Two processes on gloo with DTensor parameters, against the whole model in one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from masters.masking.criteria import Activation, Criterion, Magnitude, Random
from masters.masking.layers import local
from masters.masking.teacher_mask import TeacherMask

RATIOS = (0.2, 0.05, 0.5, 1.0)


class Net(nn.Module):
    """An embedding with a tied head, layers that do not split evenly, one row, many ties."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 13), nn.Linear(13, 1), nn.Linear(6, 8)])
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x)) + self.layers[2](x)


def net(dtype: torch.dtype) -> Net:
    torch.manual_seed(0)
    model = Net().to(dtype)
    with torch.no_grad():
        model.layers[2].weight.copy_(torch.randint(-2, 3, (8, 6)))  # ties and zeros in both processes
    return model


def sharded(dtype: torch.dtype) -> Net:
    model = net(dtype)
    fully_shard(model.layers[0])
    fully_shard(model)
    names = {name for name, value in model.named_parameters() if isinstance(value, DTensor)}
    assert names == {name for name, _ in model.named_parameters()} and names
    return model


def whole(model: nn.Module) -> dict[str, bytes]:
    values = {name: value.detach() for name, value in model.named_parameters()}
    gathered = {name: v.full_tensor() if isinstance(v, DTensor) else v for name, v in values.items()}
    return {name: value.view(torch.uint8).numpy().tobytes() for name, value in gathered.items()}


def same_as_whole(dtype: torch.dtype, criterion: Criterion) -> None:
    ours, theirs = sharded(dtype), net(dtype)
    pristine, identities = whole(theirs), [id(value) for value in ours.parameters()]
    mask, reference = (TeacherMask(model, criterion=criterion) for model in (ours, theirs))
    assert mask.names == reference.names and not any("head" in name for name in mask.names)
    x = torch.randn(4, 6).to(dtype)
    for ratio in RATIOS:
        mask.apply(ratio)
        reference.apply(ratio)
        assert whole(ours) == whole(theirs), (criterion, ratio)
        assert whole(ours) != pristine or ratio < 0.2  # at 0.05 no weight of a short row is removed
        with torch.no_grad():  # leaves the whole weights of the root in memory; the next mask must reach them
            assert torch.equal(ours(x), theirs(x))
    mask.restore()
    assert whole(ours) == pristine
    with torch.no_grad():
        reference.restore()
        assert torch.equal(ours(x), theirs(x))
    ours.reshard()
    assert [id(value) for value in ours.parameters()] == identities


def check_masks() -> None:
    torch.manual_seed(1)  # the same norms in all processes
    norms = {"layers.0.weight": torch.rand(6), "layers.1.weight": torch.rand(13)}
    activation = Activation(norms | {"layers.2.weight": torch.rand(6)})
    for criterion in (Magnitude(), Random(), activation):
        same_as_whole(torch.float32, criterion)
    same_as_whole(torch.bfloat16, Magnitude())


class Experts(nn.Module):
    """Five matrices in one parameter, of which one process holds three and the other two."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(5, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("eoi,bi->bo", self.gate_up_proj, x)


def check_experts() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(2)
        models.append(nn.Sequential(Experts(), nn.Linear(4, 8)))
    ours, theirs = models
    fully_shard(ours[0])
    fully_shard(ours)
    pristine = whole(theirs)
    for criterion in (Magnitude(), Random()):
        mask, reference = (TeacherMask(model, criterion=criterion) for model in models)
        own = [name for name in reference.names if name in mask.names]
        assert own == list(mask.names) and len(own) == (4, 3)[dist.get_rank()]
        for ratio in RATIOS:
            mask.apply(ratio)
            reference.apply(ratio)
            assert whole(ours) == whole(theirs) != pristine
        mask.restore()
        reference.restore()
        assert whole(ours) == pristine


def check_a_damaged_shard_is_refused_by_all() -> None:
    model = sharded(torch.float32)
    before = whole(model)
    mask = TeacherMask(model)
    weight = local(mask._layers[0].weight)
    if dist.get_rank() == 1:
        kept, weight[0, 0] = weight[0, 0].clone(), torch.nan
    with pytest.raises(ValueError, match=r"layers\.0\.weight.*NaN"):
        mask.apply(0.2)
    if dist.get_rank() == 1:
        weight[0, 0] = kept
    assert whole(model) == before


def check_shards_by_columns_are_refused_and_replicas_are_masked() -> None:
    mesh = init_device_mesh("cpu", (2,))
    for placement, fine in ((Shard(1), False), (Replicate(), True)):
        layer, reference = (nn.Linear(6, 4) for _ in range(2))
        dist.broadcast(reference.weight.data, 0)
        layer.weight = nn.Parameter(distribute_tensor(reference.weight.detach(), mesh, [placement]))
        if fine:
            TeacherMask(layer).apply(0.5)
            TeacherMask(reference).apply(0.5)
            assert torch.equal(layer.weight.to_local(), reference.weight)
        else:
            with pytest.raises(ValueError, match=r"weight: sharded as .*: shard by rows"):
                TeacherMask(layer)


def process(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        assert dist.get_world_size() == 2
        check_masks()
        check_experts()
        check_a_damaged_shard_is_refused_by_all()
        check_shards_by_columns_are_refused_and_replicas_are_masked()
        Path(f"{rendezvous}.{rank}").touch()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_a_sharded_teacher_is_masked_as_the_whole_one(tmp_path: Path) -> None:
    mp.spawn(process, args=(str(tmp_path / "rendezvous"),), nprocs=2)
    assert {file.name for file in tmp_path.glob("rendezvous.*")} == {"rendezvous.0", "rendezvous.1"}
