"""Frozen features of labelled images, computed by all ranks and brought together on the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline.recipe.schema import Recipe
from pipeline.units import Source
from trainers.downstream.histogram import colour_histogram
from trainers.feed import Feed
from trainers.inputs import Normaliser, to_device
from trainers.precision import autocast
from trainers.ranks import gathered


@dataclass(frozen=True)
class FeatureSet:
    """Features of n samples, in order of their ids.

    Args:
        x: for each network, and for `histogram`, float32 (n, d).
        y: int64 (n,): the labels.
    """

    x: dict[str, np.ndarray]
    y: np.ndarray


@torch.inference_mode()
def extract(networks: Mapping[str, nn.Module], source: Source, recipe: Recipe) -> FeatureSet:
    """One pass over a source; to be called on every rank of a Ray Train run.

    Args:
        networks: from normalised images to vectors, in evaluation mode, by name.
        source: images with labels; samples that cannot be decoded or have no label are left out.
        recipe: for the normalisation and precision.

    Returns:
        All ranks' features on rank 0; on the others, the same.
    """
    import ray.train
    import ray.train.torch

    context, device = ray.train.get_context(), ray.train.torch.get_device()
    world = context.get_world_size()
    pixels = Normaliser(recipe.image.mean, recipe.image.std).to(device)
    parts: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []
    for _, columns in Feed(source, context.get_world_rank(), world):
        good = (columns["weight"] > 0) & (columns["class"] >= 0)
        if not good.any():
            continue
        image = columns["image"][good]
        network_input = pixels(to_device({"image": image}, device)["image"])
        made = {"histogram": colour_histogram(image)}
        with autocast(device, recipe.training.precision):
            for name, network in networks.items():
                made[name] = network(network_input).float().cpu().numpy()
        parts.append((columns["id"][good], columns["class"][good], made))
    parts = gathered(parts, world)
    order = np.argsort(np.concatenate([ids for ids, _, _ in parts]), kind="stable")
    return FeatureSet(
        x={name: np.concatenate([made[name] for _, _, made in parts])[order] for name in ("histogram", *networks)},
        y=np.concatenate([labels for _, labels, _ in parts])[order],
    )
