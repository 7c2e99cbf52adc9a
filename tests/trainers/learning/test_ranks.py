"""Gradients of several ranks are those of one process on the whole batch, whatever the shares and whichever samples are bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.recipe import Recipe
from pipeline.tasks import registry as tasks
from trainers.learning.gradients import accumulate
from trainers.learning.pretext import PretextModel
from trainers.objectives import objective_class
from trainers.objectives import registry as objectives

BATCH = 32
BAD = (5, 17, 29)
"""All of them on the last rank, whether there are two or three."""


def task_of(objective: str) -> tuple[str, dict]:
    """A task that is learnt by this objective."""
    for name, task in tasks().items():
        if objective_class(task()).name == objective:
            return name, {}
    kind = objectives()[objective].kind
    name = next(name for name, task in tasks().items() if type(task().label_kind()) is kind)
    return name, {"objective": objective}


def network(spec: Recipe) -> PretextModel:
    """Batch normalisation as in evaluation, so that a sample's gradient does not depend on the others of its rank."""
    model = PretextModel(spec, seed=0).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def lanes_of(rank: int, world: int) -> list[int]:
    """Rows of a rank where 32 lanes are in 32 groups: 11, 11 and 10 of three."""
    return list(range(rank, BATCH, world))


def work(rank: int, store: str, cases: list[tuple[str, Recipe, dict[str, np.ndarray]]], out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    two = dist.new_group([0, 1])
    found: dict[str, dict[str, Tensor]] = {}
    for world, group in ((3, None), (2, two)):
        for name, spec, columns in cases if rank < world else []:
            parallel = DistributedDataParallel(network(spec), process_group=group)
            rows = lanes_of(rank, world)
            accumulate(parallel, spec.tasks, {key: column[rows] for key, column in columns.items()}, BATCH / world, "float32")
            found[f"{name} {world}"] = gradients(parallel)
    if rank == 0:
        torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def cases(recipe, rendered) -> list[tuple[str, Recipe, dict[str, np.ndarray]]]:
    """By objective: a recipe of one task, and its batch with bad samples."""
    found = []
    for name in objectives():
        task, parameters = task_of(name)
        columns = {key: column.numpy().copy() for key, column in rendered(task, n=BATCH).items()}
        columns["weight"][list(BAD)] = 0
        found.append((name, recipe((task, parameters)), columns))
    task_names = ("rotation", "occlusion")
    columns = {key: column.numpy().copy() for key, column in rendered(*task_names, n=BATCH).items()}
    columns["weight"][list(BAD)] = 0
    return [*found, ("several", recipe(*task_names, task_weights="uncertainty"), columns)]


def test_two_and_three_ranks_have_the_gradients_of_one_process(cases, tmp_path: Path) -> None:
    mp.start_processes(work, (str(tmp_path / "store"), cases, str(tmp_path / "out.pt")), nprocs=3, start_method="spawn")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert {len(lanes_of(rank, 3)) for rank in range(3)} == {10, 11}
    for name, spec, columns in cases:
        alone = network(spec)
        accumulate(alone, spec.tasks, columns, BATCH, "float32")
        wanted = gradients(alone)
        for world in (2, 3):
            assert found[f"{name} {world}"].keys() == wanted.keys()
            for layer, gradient in wanted.items():
                apart = (found[f"{name} {world}"][layer] - gradient).norm() / gradient.norm().clamp(min=1e-6)
                assert apart < 1e-3, (name, world, layer)
