"""Objective of colour labels: at each place, predict one colour of a palette; cross-entropy, rebalanced if shares are known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.labels import Colours
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.networks.inputs import Normaliser
from trainers.networks.precision import in_float32
from trainers.objectives.base import Objective, Outcome
from trainers.objectives.decoder import Corrector
from trainers.objectives.pixels import chroma, enlarged

UNIFORM = 0.5
"""Part of the uniform distribution in the mixture with the shares by which colours are weighted (Zhang et al. 2016)."""

NEAR = 30.0
"""Standard deviation, in levels of 255, of the difference between a pixel of a small version and the pixel before it, roughly. By
this normal distribution the answer starts from the pixel before; the network learns a correction of it."""

_CHUNK = 1 << 16


class ColoursObjective(Objective):
    """Cross-entropy over the colours of a palette, at the places that the label asks for.

    The metric is the share of places whose colour is predicted correctly. If the label has the shares of the colours, places of
    rare colours weigh more in loss and metric, and the trivial answer is the most frequent colour. Otherwise the trivial answer
    is the colour of the pixel before; of a palette in RGB the network's answer is a correction of it (see `NEAR`).
    """

    name = "colours"
    kind = Colours
    needs = ("map",)
    metric = "accuracy"
    higher_is_better = True

    palette: Tensor
    weights: Tensor
    near: Tensor

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        kind = task.label_kind()
        assert isinstance(kind, Colours)
        self.label, self.norm, self.size = kind, task.input_norm, image_size
        self.side = kind.side or image_size // 4
        self.register_buffer("palette", torch.tensor(kind.palette), persistent=False)
        weights = torch.ones(len(kind.palette))
        if kind.shares is not None:
            shares = torch.tensor(kind.shares)
            weights = 1 / ((1 - UNIFORM) * shares + UNIFORM / len(shares))
            weights = weights / (weights * shares).sum()
        self.register_buffer("weights", weights, persistent=False)
        apart = torch.cdist(self.palette.float(), self.palette.float())
        self.register_buffer("near", -apart.square() / (2 * NEAR**2), persistent=False)
        self.decoder: nn.Module = Corrector(backbone.map_width, backbone.map_size, self.side, len(kind.palette))

    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """Logits of the colours, float (n, colours, side, side), for `<task>.input`, uint8 (n, h, w, c)."""
        given = batch[f"{name}.input"]
        before: Tensor | None = None
        if self.palette.shape[1] == 3:  # the input has colours of the same palette
            shown = self.nearest(given.permute(0, 3, 1, 2).float())
            given, before = self.palette[shown].to(torch.uint8), _previous_colours(shown)
        x = pixels(given, self.norm)
        grid = backbone(enlarged(x, (self.size, self.size))).map
        logits: Tensor = self.decoder(enlarged(x, (self.side, self.side)), grid)
        return logits if before is None else logits + self.near[before].permute(0, 3, 1, 2)

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compare logits with the target's colours; the mask, if there is one, is uint8 (n, side, side)."""
        own = f"{name}.{self.label.target}"
        image = batch[own if own in batch else self.label.target].permute(0, 3, 1, 2).float()
        small = F.adaptive_avg_pool2d(image, self.side)
        label = self.nearest(small if self.palette.shape[1] == 3 else 255 * chroma(small / 255))
        asked = batch[f"{name}.mask"].float() if self.label.masked else torch.ones_like(label, dtype=torch.float32)
        counts = asked * self.weights[label]
        counts = counts / counts.sum((1, 2), keepdim=True).clamp(min=1e-12)
        with torch.no_grad():
            weight = batch["weight"]
            if self.label.shares is not None:
                guess = torch.full_like(label, int(np.argmax(self.label.shares)))
            else:
                guess = _previous_colours(label)
            metric, trivial = (((x == label) * counts).sum((1, 2)) * weight for x in (answer.argmax(1), guess))
        return Outcome(
            loss=((F.cross_entropy(answer, label, reduction="none") * counts).sum((1, 2)) * weight).sum(),
            metric=metric.sum(),
            trivial=trivial.sum(),
            count=weight.sum(),
        )

    def nearest(self, colours: Tensor) -> Tensor:
        """Nearest palette entry at each place, int64 (n, h, w), for colours, float (n, 2 or 3, h, w), in the palette's units."""
        places = colours.permute(0, 2, 3, 1)
        parts = places.reshape(-1, places.shape[3]).split(_CHUNK)
        with in_float32(colours.device):
            found = [torch.cdist(part, self.palette.float()).argmin(1) for part in parts]
        return torch.cat(found).view(places.shape[:3])


def _previous_colours(colours: Tensor) -> Tensor:
    """The colour of the place before each place in reading order, int64 (n, h, w); for the first place, that of the last."""
    return colours.flatten(1).roll(1, 1).view_as(colours)
