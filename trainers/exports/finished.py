"""Reads the folder of a finished run: its backbone as a network, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.recipe.training import BackboneSection
from pipeline.storage import absolute, exists, join
from trainers.networks.backbones import build_backbone
from trainers.running.runs import BACKBONE, EVALUATED, FINETUNED, PRETRAINED, RECIPE, read_json, read_weights


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a photo before it is a network's input: the largest centred square, resized, and normalised.

    Args:
        size: side of the input, pixels.
        mean: channel means that are subtracted, in 0..1.
        std: channel deviations that it is divided by, in the same units.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def transform(self) -> Callable[[Any], Tensor]:
        """Make torchvision's transform: a PIL image, or uint8 (3, h, w), to float32 (3, size, size)."""
        from torchvision.transforms import v2

        return v2.Compose(
            [
                v2.ToImage(),
                v2.RGB(),
                v2.Resize(self.size, antialias=True),
                v2.CenterCrop(self.size),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.mean), list(self.std)),
            ]
        )


class FeatureExtractor(nn.Module):
    """A pretrained backbone in evaluation mode: normalised images in, a feature vector for each out.

    Attributes:
        backbone: the network; called itself, it gives the vector and the last map with more than one position.
        spec: how it is built.
        layer: the layer whose output, averaged over positions, is the vector; None for the input of the network's own classifier.
            It is the deepest layer that pretraining has trained.
        trained: names of the weights that pretraining has trained.
        width: length of the vectors.
        preprocessing: makes photos to inputs.
    """

    def __init__(self, spec: BackboneSection, weights: dict[str, Tensor], image_size: int, mean: Any, std: Any) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(spec, image_size, seed=0)
        missing = self.backbone.load(weights)
        self.trained = self.backbone.weight_names() - frozenset(missing)
        self.layer = self.backbone.map_layer if self.backbone.lacking(None, missing) else None
        self._embedding = self.backbone.embedding(self.layer)
        self.width = self._embedding.width
        taken = self.backbone.resized(torch.zeros(1, 3, image_size, image_size))
        self.preprocessing = Preprocessing(taken.shape[-1], tuple(mean), tuple(std))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the vectors, float (n, width), of normalised images, float (n, 3, h, w)."""
        return self._embedding(x)


@dataclass(frozen=True)
class FinishedRun:
    """A run that `pretrain` has finished.

    Args:
        url: its folder.
        network: its backbone.
        recipe: the resolved recipe, as in `recipe.json`.
        pretrained: what `pretrain` returned, as in `pretrain.json`.
        downstream: the rows of `evaluate` and `finetune` on this backbone.
        differs: for each of these commands the keys in which its recipe was another, with both values.
    """

    url: str
    network: FeatureExtractor
    recipe: dict[str, Any]
    pretrained: dict[str, Any]
    downstream: list[dict[str, Any]]
    differs: dict[str, dict[str, Any]]


def open_run(run: str) -> FinishedRun:
    """Read a run's folder.

    Args:
        run: the folder, a path or URL, such as `runs/photos`.

    Raises:
        UserError: it holds no pretrained backbone.
    """
    url = absolute(run)
    if not exists(join(url, BACKBONE)) or not exists(join(url, RECIPE)):
        raise UserError(
            f"{run}: no {BACKBONE} and {RECIPE} there: give the folder of a run that `pseudolabel pretrain` has finished, "
            "such as runs/photos"
        )
    saved, recipe = read_weights(join(url, BACKBONE)), read_json(join(url, RECIPE)) or {}
    image, spec = recipe["image"], BackboneSection.model_validate(saved["spec"])
    found = {command: read_json(join(url, name)) or {} for command, name in (("evaluate", EVALUATED), ("finetune", FINETUNED))}
    results = {command: part for command, part in found.items() if part.get("pretraining") == saved["identity"]}
    return FinishedRun(
        url=url,
        network=FeatureExtractor(spec, saved["backbone"], image["size"], image["mean"], image["std"]),
        recipe=recipe,
        pretrained=read_json(join(url, PRETRAINED)) or {},
        downstream=[row for part in results.values() for row in part["downstream"]],
        differs={command: part.get("differs") or {} for command, part in results.items()},
    )


def load_backbone(run: str) -> FeatureExtractor:
    """Load the backbone of a finished run, the small stem included, as a torch network from normalised images to features.

        network = pseudolabel.load_backbone("runs/photos")
        vector = network(network.preprocessing.transform()(photo)[None])

    Arguments and errors as of `open_run`.
    """
    return open_run(run).network
