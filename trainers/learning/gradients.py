"""Computes the gradients of a step, one objective after another, so that memory holds the activations of one at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainers.networks.inputs import decodable, to_device
from trainers.networks.precision import Precision, autocast
from trainers.objectives import Outcome

_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
WITHOUT_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False}
"""The option of `DistributedDataParallel` by which it does not send buffers, such as queues, with each forward pass."""


def accumulate(
    model: nn.Module,
    objectives: Iterable[str],
    columns: Mapping[str, Any],
    share: float,
    precision: Precision,
    parts: int = 1,
) -> dict[str, Outcome]:
    """Add the gradients of all objectives' costs, each divided by `share`, to the gradients of the weights.

    The result is that of one backward pass over all objectives, which would need memory for every task's activations at once.
    Ranks exchange their gradients once, in the pass of the last objective. Samples that could not be decoded are left out.

    Args:
        model: its forward takes a batch and the name of an objective, and returns that objective's outcome under its name. It may
            be wrapped for distributed training.
        objectives: names of the objectives.
        columns: columns of the batch, see `trainers.networks.inputs.decodable`; the pixels may be on the model's device already.
        share: number of samples by which the sums are divided.
        precision: the recipe's precision.
        parts: number of parts of the batch that are computed one after another; the same on all ranks. If no objective needs
            the whole batch, only batch normalisation depends on it, whose statistics are then those of a part.

    Returns:
        The outcome of each objective, without graph.
    """
    device = next(model.parameters()).device
    batches = [to_device(decodable(part), device) for part in _split(columns, parts)]
    found: dict[str, Outcome] = {}
    names = list(objectives)
    ranks = model if isinstance(model, DistributedDataParallel) else None
    for name, batch in ((name, batch) for name in names for batch in batches):
        is_last = name == names[-1] and batch is batches[-1]
        with nullcontext() if ranks is None or is_last else ranks.no_sync():
            with autocast(device, precision):
                outcome = model(batch, name)[name]
            cost = outcome.minimised / share
            if ranks is not None and is_last and len(names) > 1:
                # DDP exchanges only the gradients of weights that are part of this graph: this adds all others to it.
                cost = cost + 0 * sum(weight.sum() for weight in ranks.parameters() if weight.requires_grad)
            cost.backward()
        outcome = replace(outcome, loss=outcome.loss.detach(), cost=None, aside=None)
        found[name] = found[name] + outcome if name in found else outcome
    return found


def _split(columns: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
    """Split the rows of a batch into parts whose sizes differ by one at most."""
    edges = [len(columns["weight"]) * part // parts for part in range(parts + 1)]
    return [{name: column[first:end] for name, column in columns.items()} for first, end in pairwise(edges)]
