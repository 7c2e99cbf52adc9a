"""Colours as classes: at each place one of a palette, cross-entropy, rebalanced where shares are known."""

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
"""Part of a uniform distribution that is mixed into the shares before rare colours are weighed by them (Zhang et al. 2016)."""

NEAR = 30.0
"""Levels by which neighbouring pixels of a small version differ, or so: the farther a colour is from the one before, the less
likely it is, and the network learns what departs from that."""

_CHUNK = 1 << 16


class ColoursObjective(Objective):
    """Cross-entropy over the colours of a palette at the places that are asked for.

    Where the label knows how often each colour occurs, a place weighs in inverse proportion to that, in the loss and in the
    metric, the share of places told right. The trivial answer is then the most frequent colour, else the colour of the pixel
    before, from which the network's answer starts: it is a correction of that (see `NEAR`).
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
        if self.palette.shape[1] == 3:  # what is given is of the same palette
            shown = self.nearest(given.permute(0, 3, 1, 2).float())
            given, before = self.palette[shown].to(torch.uint8), _one_before(shown)
        x = pixels(given, self.norm)
        grid = backbone(enlarged(x, (self.size, self.size))).map
        logits: Tensor = self.decoder(enlarged(x, (self.side, self.side)), grid)
        return logits if before is None else logits + self.near[before].permute(0, 3, 1, 2)

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Judge logits against the target's colours; the mask, where there is one, is uint8 (n, side, side)."""
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
                guess = _one_before(label)
            metric, trivial = (((x == label) * counts).sum((1, 2)) * weight for x in (answer.argmax(1), guess))
        return Outcome(
            loss=((F.cross_entropy(answer, label, reduction="none") * counts).sum((1, 2)) * weight).sum(),
            metric=metric.sum(),
            trivial=trivial.sum(),
            count=weight.sum(),
        )

    def nearest(self, colours: Tensor) -> Tensor:
        """The palette's nearest colour at each place, int64 (n, h, w), of float (n, 2 or 3, h, w) in the palette's units."""
        places = colours.permute(0, 2, 3, 1)
        parts = places.reshape(-1, places.shape[3]).split(_CHUNK)
        with in_float32(colours.device):
            found = [torch.cdist(part, self.palette.float()).argmin(1) for part in parts]
        return torch.cat(found).view(places.shape[:3])


def _one_before(colours: Tensor) -> Tensor:
    """The colour of the place before each, in raster order, of int64 (n, h, w); before the first comes the last."""
    return colours.flatten(1).roll(1, 1).view_as(colours)
