"""Frozen features of labelled images, computed on all ranks and gathered on each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.recipe.schema import Recipe
from trainers.downstream.histogram import colour_histogram
from trainers.downstream.passes import Batch
from trainers.learning.ranks import gathered
from trainers.networks.inputs import Normaliser
from trainers.networks.precision import autocast, checked


@dataclass(frozen=True)
class FeatureSet:
    """Features of n samples, in order of their ids.

    Args:
        x: for each network, and for `histogram`, float32 (n, d).
        y: int64 (n,): the labels.
    """

    x: dict[str, np.ndarray]
    y: np.ndarray


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
def extract(networks: Mapping[str, nn.Module], batches: Iterable[Batch], recipe: Recipe, world: int = 1) -> FeatureSet:
    """Features of the images of one pass; to be called on every rank.

    Args:
        networks: from normalised images to vectors, in evaluation mode, by name.
        batches: the rank's share of the images.
        recipe: for the normalisation and precision.
        world: number of ranks.

    Returns:
        All ranks' features, the same on every rank.
    """
    pixels = Normaliser(recipe.image.mean, recipe.image.std)
    parts: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []
    for batch in batches:
        if not len(batch.ids):
            continue
        device = batch.image.device
        network_input, made = pixels.to(device)(batch.image), {"histogram": colour_histogram(batch.image)}
        with autocast(device, recipe.training.precision):
            for name, network in networks.items():
                made[name] = network(network_input).float().cpu().numpy()
        parts.append((batch.ids, batch.labels, made))
    parts = gathered(parts, world)
    if not parts:
        return FeatureSet({name: np.zeros((0, 1), np.float32) for name in ("histogram", *networks)}, np.zeros(0, np.int64))
    order = np.argsort(np.concatenate([ids for ids, _, _ in parts]), kind="stable")
    return FeatureSet(
        x={name: np.concatenate([made[name] for _, _, made in parts])[order] for name in ("histogram", *networks)},
        y=np.concatenate([labels for _, labels, _ in parts])[order],
    )
