"""Gradients of several ranks are those of one process on the whole batch, whatever the shares and whichever samples are bad."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.labels import Views
from pipeline.recipe import Recipe
from pipeline.tasks import registry as tasks
from tests.trainers.views import SMALL, view_columns, view_task
from trainers.learning.gradients import WITHOUT_BUFFERS, accumulate
from trainers.learning.pretext import PretextModel, batch_norm
from trainers.objectives import objective_class
from trainers.objectives import registry as objectives

BATCH = 32
VIEWED = 25
"""Samples of a batch of views."""

ADVERSARIAL = {
    f"adversarial {task} {kind}": (task, {"objective": {"name": "adversarial", "kind": kind, "weight": 0.5, **more}})
    for task, kind in (("occlusion", "hinge"), ("colorization", "least_squares"), ("super_resolution", "wasserstein"))
    for more in ({"start": 0.1, "ramp": 0.4, "width": 8},)
}
"""Image tasks with a discriminator, which has begun in the step of the test."""

SURE = {"fixmatch": ("fixmatch", {"objective": {"threshold": 0.0, "unlabelled": 0.5}})}
"""A task of labelled and unlabelled images, whose network is sure of all of them."""

BAD = (5, 17, 29)
"""All of them on one rank, whether there are two, three or four."""


def task_of(objective: str) -> tuple[str, dict]:
    """A task that is learnt by this objective."""
    for name, task in tasks().items():
        if objective_class(task()).name == objective:
            return name, {}
    kind = objectives()[objective].kind
    name = next(name for name, task in tasks().items() if type(task().label_kind()) is kind)
    return name, {"objective": objective}


def network(spec: Recipe) -> PretextModel:
    """Batch normalisation over all ranks or as in evaluation: a sample's gradient does not depend on the others of its rank."""
    model = PretextModel(spec, seed=0).train()
    generator = torch.Generator().manual_seed(0)
    for path, buffer in model.named_buffers():  # a queue that is partly filled, and a centre
        if path.endswith((".queue", ".centre")):
            buffer.copy_(torch.nn.functional.normalize(torch.randn(buffer.shape, generator=generator), dim=-1))
        elif path.endswith(".filled"):
            buffer.fill_(20)
    for module in model.modules() if batch_norm(spec) == "local" else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def step(model: nn.Module, spec: Recipe, columns: dict[str, np.ndarray], share: float, parts: int = 1) -> dict[str, Tensor]:
    """The gradients of a step, and what objectives keep after it."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    for objective in inner.objectives.values():
        objective.begin_step(3, 10)
    accumulate(model, spec.tasks, columns, share, "float32", parts)
    found = gradients(model)
    with torch.no_grad():
        for weight in inner.parameters():
            if weight.grad is not None:
                weight -= 0.01 * weight.grad
    for objective in inner.objectives.values():
        objective.after_update(inner.backbone)
    return {**found, **kept(inner)}


def kept(model: nn.Module) -> dict[str, Tensor]:
    """Momentum networks, queues, centres and singular vectors."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        f"kept {path}": value.detach()
        for path, value in named.items()
        if path.endswith((".queue", ".filled", ".centre", ".singular")) or (".target_" in path and not value.requires_grad)
    }


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def lanes_of(rank: int, world: int, batch: int = BATCH) -> list[int]:
    """Rows of a rank where each lane is a group: 11, 11 and 10 of three."""
    return list(range(rank, batch, world))


def worlds_of(name: str, worlds: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of ranks that a case is tested with: two players with two, too."""
    return tuple({*worlds, 2}) if name in ADVERSARIAL else worlds


def all_worlds(worlds: tuple[int, ...]) -> list[int]:
    return sorted({*worlds, 2}, reverse=True)


def work(
    rank: int, store: str, worlds: tuple[int, ...], cases: list[tuple[str, Recipe, dict[str, np.ndarray]]], out: str
) -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, Tensor]] = {}
    for world in (world for world in all_worlds(worlds) if rank < world):
        dist.init_process_group("gloo", init_method=f"file://{store}{world}", rank=rank, world_size=world)
        for name, spec, columns in cases:
            if world not in worlds_of(name, worlds):
                continue
            parallel = DistributedDataParallel(network(spec), **WITHOUT_BUFFERS)
            batch = len(columns["weight"])
            rows = lanes_of(rank, world, batch)
            mine = {key: column[rows] for key, column in columns.items()}
            found[f"{name} {world}"] = step(parallel, spec, mine, batch / world, spec.training.accumulate)
            if name in SMALL or name in ADVERSARIAL:
                parts: list = [None] * world
                dist.all_gather_object(parts, kept(parallel.module))
                assert all(torch.equal(part[key], parts[0][key]) for part in parts for key in part), name
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        torch.save(found, out)


@pytest.fixture(scope="module")
def cases(recipe, rendered, crops) -> list[tuple[str, Recipe, dict[str, np.ndarray]]]:
    """By objective: a recipe of one task, and its batch with bad samples."""
    found = []
    plain = {name: task_of(name) for name, cls in objectives().items() if cls.kind is not Views and name != "adversarial"} | SURE
    for name, (task, parameters) in {**plain, **ADVERSARIAL}.items():
        columns = {key: column.numpy().copy() for key, column in rendered(task, n=BATCH).items()}
        columns["weight"][list(BAD)] = 0
        alone = {"batch_norm": "local"} if name in SURE else {}  # which `network` sets as in evaluation, as for the others
        found.append((name, recipe((task, parameters), **alone), columns))
    task_names = ("rotation", "occlusion")
    columns = {key: column.numpy().copy() for key, column in rendered(*task_names, n=BATCH).items()}
    columns["weight"][list(BAD)] = 0
    found.append(("several, in parts", recipe(*task_names, task_weights="uncertainty", accumulate=3), columns))
    for name in SMALL:
        columns = view_columns(crops, VIEWED, small=True)
        columns["weight"][list(BAD[:2])] = 0
        found.append((name, recipe(view_task(name, small=True), backbone="resnet10"), columns))
    return found


@pytest.mark.parametrize("worlds", [(3,), pytest.param((4, 2), marks=pytest.mark.slow)], ids=str)
def test_two_three_and_four_ranks_have_the_gradients_of_one_process(cases, worlds: tuple[int, ...], tmp_path: Path) -> None:
    """Three have shares of unequal size."""
    given = (str(tmp_path / "store"), worlds, cases, str(tmp_path / "out.pt"))
    multiprocessing.set_forkserver_preload([__name__])  # which imports torch once for all ranks
    mp.start_processes(work, given, nprocs=max(worlds), start_method="forkserver")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert {len(lanes_of(rank, 3)) for rank in range(3)} == {10, 11}
    assert {len(lanes_of(rank, 4, VIEWED)) for rank in range(4)} == {6, 7}
    too_far: list[tuple[str, int, str, float]] = []
    for name, spec, columns in cases:
        wanted = step(network(spec), spec, columns, len(columns["weight"]))
        for world in worlds_of(name, worlds):
            assert found[f"{name} {world}"].keys() == wanted.keys()
            for layer, gradient in wanted.items():
                apart = (found[f"{name} {world}"][layer] - gradient).float().norm()
                # A gradient that is 0, as a bias before a normalisation has, is so but for rounding.
                share = float(apart / gradient.float().norm().clamp(min=1e-3))
                too_far += [(name, world, layer, share)] if share > 1e-3 else []
    assert not too_far
