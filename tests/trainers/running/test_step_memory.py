"""The memory of a step is estimated without computing it, and a run that has less is refused before it starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from pipeline.errors import UserError
from tests.trainers.views import view_columns, view_task
from trainers.learning.pretext import PretextModel
from trainers.objectives.classes import ClassesObjective
from trainers.running.capacity import Node
from trainers.running.step_memory import StepMemory, check_memory, step_memory

N = 6


def kept(model: PretextModel, name: str, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of all memory that a real graph keeps, besides the network's own."""
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        graph = model.objectives[name].answer(model.backbone, batch, name, model.pixels)
    assert graph.requires_grad
    return sum(size for place, size in found.items() if place not in own)


@pytest.mark.parametrize("task", ["rotation", "jigsaw", "occlusion", "next_pixel", "corrupted_region", "dim", "byol", "dino"])
def test_the_estimate_is_what_a_real_graph_keeps(task: str, recipe: Any, rendered: Any, crops: Any) -> None:
    views = task in ("byol", "dino")
    spec = recipe(view_task(task, small=True) if views else (task, {}), backbone="resnet10", precision="float32")
    (name,) = spec.tasks
    columns = view_columns(crops, N, small=True) if views else rendered(task, n=N)
    batch = {key: torch.as_tensor(column) for key, column in columns.items() if key != "id"}
    model = PretextModel(spec, seed=0)
    need = step_memory(model, spec)
    assert need is not None
    assert need.task == name
    assert need.sample * N == pytest.approx(kept(model, name, batch), rel=0.06)  # some is kept once for all samples
    assert all(weight.device.type == "cpu" for weight in model.parameters())


def test_the_largest_task_counts_and_the_weights_once_for_each_number_of_the_optimizer(recipe: Any) -> None:
    spec = recipe("rotation", "jigsaw", precision="float32")
    model = PretextModel(spec, seed=0)
    weights, buffers = (sum(x.nbytes for x in tensors) for tensors in (model.parameters(), model.buffers()))
    need = step_memory(model, spec)
    assert need == StepMemory(4 * weights + buffers, need.sample, "jigsaw")  # weights, gradients, and two moments
    sgd = spec.model_copy(update={"training": recipe(optimizer={"name": "sgd"}, precision="bfloat16").training})
    one = recipe("rotation", "jigsaw", precision="float32", tasks_per_sample="one")
    assert step_memory(model, one) == StepMemory(4 * weights + buffers, need.sample // 2, "jigsaw")
    assert step_memory(model, sgd) == StepMemory(3 * weights + buffers, need.sample // 2, "jigsaw")


class Counting(ClassesObjective):
    """An objective whose work depends on what it sees."""

    name = "counting"

    def answer(self, backbone: Any, batch: Any, name: str, pixels: Any) -> torch.Tensor:
        return super().answer(backbone, batch, name, pixels)[: int(batch["weight"].sum().item())]


def test_an_objective_that_cannot_be_computed_without_values_is_not_judged(recipe: Any) -> None:
    spec = recipe("rotation")
    model = PretextModel(spec, seed=0)
    model.objectives["rotation"] = Counting(spec.tasks["rotation"], model.backbone, 32)
    assert step_memory(model, spec) is None


def test_a_step_that_cannot_fit_is_refused_with_the_arithmetic_and_what_to_change(recipe: Any) -> None:
    need = StepMemory(fixed=2**30, sample=2**26, task="simclr")  # 1 GiB and 64 MiB
    full = recipe("rotation", batch=256)
    words = (
        r"^a step needs at least 17\.0 GiB on each of 1 workers: 256 samples x 64\.0 MiB \(tasks\.simclr\) \+ 1,024\.0 MiB of "
        r"weights, gradients and optimizer; the largest of 2 nodes has 16\.0 GiB: lower training\.batch, .*training\.accumulate"
    )
    with pytest.raises(UserError, match=words):
        check_memory(need, full, [Node(4, 0, 2**30, 16 * 2**30), Node(4, 0, 2**30, 8 * 2**30)])
    check_memory(need, full, [Node(4, 0, 2**30, 17 * 2**30)])
    check_memory(need, recipe("rotation", batch=256, accumulate=2), [Node(4, memory=9 * 2**30)])
    check_memory(need, recipe("rotation", batch=256, workers=[1, 2]), [Node(4, memory=9 * 2**30)] * 2)
    with pytest.raises(UserError, match=r"9\.0 GiB on each of 2 workers: 128 samples"):
        check_memory(need, recipe("rotation", batch=256, workers=[1, 2]), [Node(4, memory=9 * 2**30)])


def test_memory_that_is_not_known_refuses_nothing(recipe: Any) -> None:
    need = StepMemory(fixed=2**50, sample=0, task="simclr")
    check_memory(need, recipe("rotation"), [Node(4, memory=2**30), Node(4)])
    check_memory(need, recipe("rotation", gpus=1), [Node(4, 1, memory=2**30)])
