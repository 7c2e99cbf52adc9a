"""The gradients of all tasks are those of one backward pass, without bad samples, in the memory of one task, exchanged once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from trainers.learning.gradients import accumulate
from trainers.learning.optim import place
from trainers.learning.pretext import PretextModel
from trainers.networks.inputs import decodable, to_device

FOUR = ("rotation", "jigsaw", "occlusion", "colorization")
Columns = dict[str, torch.Tensor]


def at_once(model: PretextModel, batch: Columns, share: float) -> None:
    costs = [outcome.minimised for outcome in model(batch).values()]
    (torch.stack(costs).sum() / share).backward()


def gradients(model: torch.nn.Module) -> Columns:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def with_bad_samples(batch: Columns) -> Columns:
    return batch | {"weight": torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1])}


def one_task_a_sample(batch: Columns) -> Columns:
    return batch | {"task": torch.tensor([0, 1, 2, 3, 3, 3, 0, 1])}


@pytest.mark.parametrize("kind", [lambda batch: batch, with_bad_samples, one_task_a_sample], ids=["all", "bad", "one"])
def test_task_by_task_they_are_those_of_one_backward_pass(kind, recipe, columns) -> None:
    batch = {name: column.numpy() for name, column in kind(columns(8, 32)).items()}
    model = PretextModel(recipe(*FOUR, task_weights="uncertainty"), seed=0)
    wanted = copy.deepcopy(model)
    at_once(wanted, to_device(decodable(batch), "cpu"), 8)
    accumulate(model, FOUR, batch, 8, "float32")
    found = gradients(model)
    assert found.keys() == gradients(wanted).keys()
    for name, gradient in gradients(wanted).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [lambda batch: batch, with_bad_samples, one_task_a_sample], ids=["all", "bad", "one"])
@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_has_the_outcome_and_the_gradients_of_the_whole(kind, parts: int, recipe, columns) -> None:
    batch = {name: column.numpy() for name, column in kind(columns(8, 32)).items()}
    whole, split = (PretextModel(recipe(*FOUR, task_weights="uncertainty"), seed=0) for _ in range(2))
    for module in (*whole.modules(), *split.modules()):
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()  # in training its statistics are those of a part
    wanted, found = accumulate(whole, FOUR, batch, 8, "float32"), accumulate(split, FOUR, batch, 8, "float32", parts)
    for name, outcome in wanted.items():
        assert found[name].also.keys() == outcome.also.keys()
        for part in ("loss", "metric", "trivial", "count"):
            torch.testing.assert_close(getattr(found[name], part), getattr(outcome, part), rtol=1e-4, atol=1e-6)
    assert gradients(split).keys() == gradients(whole).keys()
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(split)[name], gradient, rtol=1e-3, atol=1e-5)


def test_bad_samples_change_neither_loss_nor_metric_nor_gradient_nor_statistics(recipe, columns) -> None:
    good = {name: column.numpy() for name, column in columns(6, 32).items()}
    bad = {name: np.zeros((8, *column.shape[1:]), column.dtype) for name, column in good.items()}
    for name, column in good.items():
        bad[name][[0, 2, 3, 5, 6, 7]] = column
    alone, among = PretextModel(recipe(*FOUR), seed=0), PretextModel(recipe(*FOUR), seed=0)
    expected, found = (accumulate(model, FOUR, batch, 8, "float32") for model, batch in ((alone, good), (among, bad)))
    for name, outcome in found.items():
        for part in ("loss", "metric", "trivial", "count"):
            assert torch.equal(getattr(outcome, part), getattr(expected[name], part))
    for one, two in zip(gradients(alone).values(), gradients(among).values(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(alone.buffers(), among.buffers(), strict=True):
        assert torch.equal(one, two)


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """The bytes that graphs keep for a backward pass: `now`, and at the `most`."""
    kept = {"now": 0, "most": 0}

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor, self.bytes = tensor.detach(), tensor.numel() * tensor.element_size()
            kept["now"] += self.bytes
            kept["most"] = max(kept.values())

        def __del__(self) -> None:
            kept["now"] -= self.bytes

    with saved_tensors_hooks(Kept, lambda there: there.tensor):
        yield kept


def test_memory_holds_the_activations_of_one_task(recipe, columns) -> None:
    batch, tasks = columns(8, 32), ("rotation", "occlusion", "colorization")
    alone = {}
    for name in tasks:
        with counted() as kept:
            accumulate(PretextModel(recipe(name), seed=0), [name], batch, 8, "float32")
        alone[name] = kept["most"]
    with counted() as kept:
        accumulate(PretextModel(recipe(*tasks), seed=0), tasks, batch, 8, "float32")
    assert kept["now"] == 0
    assert max(alone.values()) <= kept["most"] < 0.5 * sum(alone.values())  # the backbone has outputs that not all tasks read


def test_memory_holds_the_activations_of_one_part(recipe, columns) -> None:
    most = {}
    for parts in (1, 4):
        with counted() as kept:
            accumulate(PretextModel(recipe("rotation"), seed=0), ["rotation"], columns(16, 32), 16, "float32", parts)
        most[parts] = kept["most"]
    assert most[4] < 0.5 * most[1]  # the weights are kept, too


def test_ranks_exchange_the_sum_of_all_tasks_once(recipe, columns, tmp_path) -> None:
    batch = columns(8, 32)
    wanted = place(PretextModel(recipe(*FOUR), seed=0), "cpu")
    exchanged = []

    def twice(state, bucket):  # torch reads the annotations, and knows no strings
        exchanged.append(bucket.buffer().numel())
        done = torch.futures.Future()
        done.set_result(2 * bucket.buffer())
        return done

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(copy.deepcopy(wanted))
        parallel.register_comm_hook(None, twice)
        for _ in range(2):  # a weight that the first step left out would be reported by the second
            parallel.zero_grad(set_to_none=True)
            exchanged.clear()
            accumulate(parallel, FOUR, batch, 8, "float32")
            accumulate(wanted, FOUR, batch, 8, "float32")
            assert sum(exchanged) == sum(weight.numel() for weight in wanted.parameters())
            for name, gradient in gradients(wanted).items():
                torch.testing.assert_close(gradients(parallel)[f"module.{name}"], 2 * gradient)
            wanted.zero_grad(set_to_none=True)
    finally:
        dist.destroy_process_group()
