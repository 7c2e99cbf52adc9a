"""Rows of unequal numbers are put together over ranks, with their gradients; batch normalisation is that of all rows."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from trainers.networks.batch_norm import GlobalBatchNorm, with_global_batch_norm
from trainers.networks.exchange import Rows

SHARES = (3, 0, 2)


def rows_of(rank: int) -> slice:
    return slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))


def everything() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, 2, 2, generator=generator), torch.randn(5, 4, 2, 2, generator=generator)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)).train()


def work(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    x, target = (part[rows_of(rank)] for part in everything())
    rows = Rows(len(x), x.device)
    own = x.flatten(1).clone().requires_grad_()
    gathered = rows.gather(own)
    (gathered.square().sum() * (rank + 1)).backward()  # each rank has a loss of its own on all rows
    model = with_global_batch_norm(network())
    (model(x) * target).sum().backward()
    for weight in model.parameters():
        dist.all_reduce(weight.grad)
    found = {
        "gathered": gathered.detach(),
        "gradient": own.grad,
        "place": torch.tensor([rows.start, rows.total]),
        "own": rows.own(gathered.detach()),
        "sum": rows.sum(torch.tensor(float(rank))),
        "weights": [weight.grad for weight in model.parameters()],
        "statistics": [model[1].running_mean, model[1].running_var],
    }
    torch.save(found, f"{out}{rank}")
    dist.barrier()
    dist.destroy_process_group()


def test_rows_and_statistics_are_those_of_one_process(tmp_path: Path) -> None:
    mp.start_processes(work, (str(tmp_path / "store"), str(tmp_path / "out")), nprocs=3, start_method="spawn")
    x, target = everything()
    alone = network()
    (alone(x) * target).sum().backward()
    for rank in range(3):
        found = torch.load(tmp_path / f"out{rank}", weights_only=True)
        assert torch.equal(found["gathered"], x.flatten(1))
        assert torch.equal(found["own"], x.flatten(1)[rows_of(rank)])
        assert found["place"].tolist() == [rows_of(rank).start, 5]
        assert found["sum"] == 3
        torch.testing.assert_close(found["gradient"], 6 * 2 * x.flatten(1)[rows_of(rank)])
        for gradient, weight in zip(found["weights"], alone.parameters()):
            torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-5)
        for one, other in zip(found["statistics"], (alone[1].running_mean, alone[1].running_var)):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3, affine=False), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, eps=0.1)])
def test_alone_it_is_torch_s_own_under_the_same_names(layer: nn.Module) -> None:
    ours = with_global_batch_norm(nn.Sequential(copy.deepcopy(layer)))[0]
    assert isinstance(ours, GlobalBatchNorm)
    assert list(ours.state_dict()) == list(layer.state_dict())
    x = torch.randn(6, 3) if isinstance(layer, nn.BatchNorm1d) else torch.randn(6, 3, 2, 2)
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), layer.train(mode)(x))


def test_one_process_keeps_its_rows_as_they_are() -> None:
    x = torch.randn(3, 2)
    rows = Rows(3, x.device)
    assert rows.gather(x) is x
    assert torch.equal(rows.own(x), x)
    assert (rows.start, rows.total) == (0, 3)
