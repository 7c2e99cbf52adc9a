"""Estimates the memory that a training step needs at least, and refuses a run that has less."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from pipeline.draws import Draws
from pipeline.engines import pixel_shapes
from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from trainers.networks.precision import compute_dtype
from trainers.running.capacity import Node

_ROWS = 2  # the fewest with which batch normalisation computes
_STATES = {"adamw": 2, "sgd": 1, "lars": 1}
"""Numbers that an optimizer keeps for each weight."""


@dataclass(frozen=True)
class StepMemory:
    """The least memory of a training step.

    Args:
        fixed: bytes of weights, gradients, the optimizer's state and buffers.
        sample: bytes that the graph of the largest task keeps for the backward pass, for each sample of the batch.
        task: the name of that task.
    """

    fixed: int
    sample: int
    task: str

    def of(self, samples: int) -> int:
        """Bytes of a step on so many samples."""
        return self.fixed + samples * self.sample


def step_memory(model: Any, recipe: Recipe) -> StepMemory | None:
    """Estimate the memory of a step: one task after another is computed on two samples without values, and scaled.

    It is a lower bound: losses, the heads of view methods and what kernels need for a moment are left out, and bfloat16 is
    counted as if everything were kept in it.

    Args:
        model: the network, a `trainers.learning.pretext.PretextModel`.
        recipe: its recipe.

    Returns:
        None if an objective of another package cannot be computed without values.
    """
    tensors = [*model.parameters(), *model.buffers()]
    empty = copy.deepcopy(model, {id(x): _without_values(x) for x in tensors})
    places = {StorageWeakRef(x.untyped_storage()) for x in (*empty.parameters(), *empty.buffers())}
    kept = {}
    for name, objective in empty.objectives.items():
        try:
            kept[name] = _kept(lambda o=objective, n=name: o.answer(empty.backbone, _batch(recipe, n), n, empty.pixels), places)
        except (NotImplementedError, RuntimeError):  # torch's errors for what depends on values
            return None
    task = max(kept, key=kept.__getitem__)
    trained = sum(x.nbytes for x in model.parameters() if x.requires_grad)
    fixed = sum(x.nbytes for x in tensors) + (1 + _STATES[recipe.training.optimizer.name]) * trained
    rows = _ROWS * (len(kept) if recipe.training.tasks_per_sample == "one" else 1)  # of the batch, of which two train a task
    return StepMemory(fixed, kept[task] // (rows * (1 if _is_float32(recipe) else 2)), task)


def check_memory(need: StepMemory, recipe: Recipe, available: list[Node]) -> None:
    """Refuse a run whose steps need more memory than the nodes have, with any number of workers that it may have.

    Memory of GPUs is not known before the workers run, and not checked.

    Args:
        need: of a step.
        recipe: the recipe.
        available: the nodes.

    Raises:
        UserError: one line, with the arithmetic and what to change.
    """
    train = recipe.training
    if train.gpus or not all(node.memory for node in available):
        return
    for workers in range(max(1, train.least_workers), train.most_workers + 1):
        samples = math.ceil(train.batch / workers / train.accumulate)
        if sum(int(node.memory // need.of(samples)) for node in available) >= workers:
            return
    most = max(node.memory for node in available)
    parts = "" if train.accumulate > 1 else ", or compute it in parts (training.accumulate)"
    raise UserError(
        f"a step needs at least {_gib(need.of(samples))} on each of {workers} workers: {samples} samples x {_mib(need.sample)} "
        f"(tasks.{need.task}) + {_mib(need.fixed)} of weights, gradients and optimizer; the largest of {len(available)} nodes "
        f"has {_gib(most)}: lower training.batch{parts}, lower image.size, take a smaller network, or add nodes and "
        "training.workers"
    )


def _without_values(x: Tensor) -> Tensor:
    empty = torch.empty_like(x, device="meta")
    return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty


def _batch(recipe: Recipe, name: str) -> dict[str, Tensor]:
    """The columns of a task for two samples, without values."""
    task, size = recipe.tasks[name], recipe.image.size
    drawn = task.draw(Draws(0, 0, np.arange(_ROWS, dtype=np.uint64)).stream(name), size)
    shapes = {column: (_ROWS, *shape) for column, shape in pixel_shapes({name: task}, size).items()}
    columns = {column: torch.empty(shape, dtype=torch.uint8, device="meta") for column, shape in shapes.items()}
    labels = {f"{name}.{key}": torch.from_numpy(drawn[key]).to("meta") for key in ("label", "mask") if key in drawn}
    return {**columns, **labels, "weight": torch.ones(_ROWS, device="meta")}


def _kept(run: Any, besides: set[Any]) -> int:
    """Bytes that a graph keeps for its backward pass, besides the tensors in these places."""
    found: dict[Any, int] = {}

    def keep(x: Tensor) -> Tensor:
        if (place := StorageWeakRef(x.untyped_storage())) not in besides:
            found[place] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        graph = run()  # noqa: F841  (what is kept is freed with it, and its place taken by others)
    return sum(found.values())


def _is_float32(recipe: Recipe) -> bool:
    """Whether the workers compute in float32, as far as this machine can tell."""
    train = recipe.training
    return train.precision == "float32" or (not train.gpus and compute_dtype("cpu", train.precision) is torch.float32)


def _gib(n: float) -> str:
    return f"{n / 2**30:,.1f} GiB"


def _mib(n: float) -> str:
    return f"{n / 2**20:,.1f} MiB"
