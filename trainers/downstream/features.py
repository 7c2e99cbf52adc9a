"""Frozen features of labelled images, computed on every rank; each rank keeps those of the images that it has seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.recipe.schema import Recipe
from trainers.downstream.histogram import colour_histogram
from trainers.downstream.passes import Batch
from trainers.learning.ranks import gathered
from trainers.networks.inputs import Normaliser
from trainers.networks.precision import autocast, checked

HISTOGRAM = "histogram"

MANY = 100_000_000
"""Numbers in the features of a set, of one network over all ranks, from which on they are many: then they are kept as float16,
and a linear probe learns them by minibatches."""

CHUNK_ROWS, CHUNK_NUMBERS = 16_384, 2**23
"""Of so many rows, or rows of so many numbers, float32 copies are made at a time."""


@dataclass(frozen=True)
class Rank:
    """One of the processes that evaluate together.

    Args:
        number: which one it is.
        world: how many there are.
        device: where it computes.
    """

    number: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class FeatureRows:
    """One network's features of the samples that a rank holds, in order of their ids.

    Args:
        ids: uint64 (n,).
        y: int64 (n,): the labels.
        x: float32 or float16 (n, d), or (n, positions, d) of a map.
    """

    ids: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray | Tensor, y: np.ndarray | Tensor) -> FeatureRows:
        """FeatureRows without ids of their own, which are numbered."""
        return cls(np.arange(len(x), dtype=np.uint64), np.asarray(y, np.int64), np.asarray(x))

    def __len__(self) -> int:
        return len(self.ids)

    def chunks(self, device: torch.device, rows: int = CHUNK_ROWS) -> Iterator[tuple[slice, Tensor]]:
        """The features as float32 on a device, at most so many rows at a time, with the rows that they are."""
        each = self.x.size // max(1, len(self))
        size = max(1, min(rows, CHUNK_NUMBERS // max(1, each)))
        for first in range(0, len(self), size):
            here = slice(first, min(first + size, len(self)))
            yield here, self.some(here, device)

    def some(self, rows: np.ndarray | slice, device: torch.device) -> Tensor:
        """The features of some rows as float32 on a device."""
        return torch.from_numpy(self.x[rows]).to(device).float()

    def together(self, world: int) -> FeatureRows:
        """The rows of all ranks, on each, in order of their ids; for few."""
        parts = [part for part in gathered([self], world) if len(part)] or [self]
        ids = np.concatenate([part.ids for part in parts])
        order = np.argsort(ids, kind="stable")
        return FeatureRows(ids[order], *(np.concatenate([getattr(part, name) for part in parts])[order] for name in ("y", "x")))


@dataclass(frozen=True)
class FeatureSet:
    """Features of the n samples that a rank has seen, in order of their ids.

    Args:
        x: for each network, and for `histogram`, float32 or float16 (n, ...).
        y: int64 (n,): the labels.
        ids: uint64 (n,).
    """

    x: dict[str, np.ndarray]
    y: np.ndarray
    ids: np.ndarray

    def rows(self, name: str) -> FeatureRows:
        """The features by one of the networks."""
        return FeatureRows(self.ids, self.y, self.x[name])


def checked_recipe(recipe: Recipe, networks: Iterable[nn.Module], device: torch.device, run_log: Any) -> Recipe:
    """The recipe with a precision in which this device computes these networks correctly.

    To be called on a Ray Train worker. Where that is another precision than the one asked for, the run log says why; see
    `trainers.networks.precision.checked`.
    """
    import ray.train

    images = torch.zeros(4, 3, recipe.image.size, recipe.image.size, device=device).contiguous(memory_format=torch.channels_last)
    found, why = checked(device, recipe.training.precision, lambda: [network(images) for network in networks])
    if why:
        run_log.note.remote(f"rank {ray.train.get_context().get_world_rank()}: {why}", 0)
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": found})})


@torch.inference_mode()
def extract(networks: Mapping[str, nn.Module], batches: Iterable[Batch], recipe: Recipe, total: int = 0) -> FeatureSet:
    """Features of a rank's share of the images of one pass.

    Memory is that of the features: 4 bytes a number, or 2 where they are `MANY`. As float16, values beyond ±65,504 are cut.

    Args:
        networks: from normalised images to features, in evaluation mode, by name.
        batches: the rank's share of the images.
        recipe: for the normalisation and precision.
        total: images of the pass on all ranks, on which it depends whether features are many.
    """
    pixels = Normaliser(recipe.image.mean, recipe.image.std)
    ids, labels = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (HISTOGRAM, *networks)}
    for batch in batches:
        if not len(batch.ids):
            continue
        device = batch.image.device
        network_input, made = pixels.to(device)(batch.image), {HISTOGRAM: colour_histogram(batch.image)}
        with autocast(device, recipe.training.precision):
            for name, network in networks.items():
                made[name] = network(network_input).float().cpu().numpy()
        for name, x in made.items():
            parts[name].append(_kept(x, number_bytes(total * x[0].size)))
        ids.append(batch.ids)
        labels.append(batch.labels)
    every = np.concatenate(ids)
    order = np.argsort(every, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return FeatureSet({name: _joined(parts[name], place) for name in parts}, np.concatenate(labels)[order], every[order])


def number_bytes(numbers: int) -> int:
    """Bytes that a number takes where a set's features of one network have so many: 2 for float16, or 4 for float32."""
    return 2 if numbers >= MANY else 4


def _kept(x: np.ndarray, size: int) -> np.ndarray:
    if size == 4:
        return x
    most = np.finfo(np.float16).max
    return x.clip(-most, most).astype(np.float16)


def _joined(parts: list[np.ndarray], place: np.ndarray) -> np.ndarray:
    """One array of the parts, whose rows go to these places; each part is freed once it is copied."""
    if not parts:
        return np.zeros((0, 1), np.float32)
    joined = np.empty((len(place), *parts[0].shape[1:]), parts[0].dtype)
    first, parts[:] = 0, parts[::-1]
    while parts:
        part = parts.pop()
        joined[place[first : first + len(part)]] = part
        first += len(part)
    return joined
