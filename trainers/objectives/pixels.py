"""An image as the label: a decoder on the map, squared or smooth absolute error, peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.labels import Pixels
from pipeline.tasks import Task
from trainers.backbones import Backbone
from trainers.inputs import Normaliser
from trainers.objectives.base import Objective, Outcome
from trainers.objectives.decoder import Decoder

SPREAD = {"rgb": 0.23, "chroma": 0.06}
"""Root mean square distance of a photo's pixels from its mean colour, and of its chroma from grey, measured on ImageNet photos.
Errors are counted in these units, which puts an answer of one colour near a loss of 1, beside cross-entropies."""

SEEN = 0.1
"""Weight of the mean error outside the hole beside that in it: enough that the filling joins its surroundings."""

BEST_PSNR = 60.0
"""Decibels at which the metric is capped; an exact answer would be infinite."""


class PixelsObjective(Objective):
    """Paints the task's target image.

    - `rgb`: squared error of the colours (Pathak et al. 2016, the reconstruction loss); with a mask, chiefly in the hole.
    - `chroma`: smooth absolute error of the two colour-difference channels (Zhang et al. 2017, for colorization).

    The metric is the PSNR in decibels of pixels of 0..1, with a mask in the hole only. The trivial answer beside it is one colour
    for the whole image: the mean of what can be seen (`rgb`), or grey (`chroma`).
    """

    name = "pixels"
    kind = Pixels
    needs = "map"
    metric = "psnr"
    higher_is_better = True

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        kind = task.label_kind()
        assert isinstance(kind, Pixels)
        self.label = kind
        self.norm = task.input_norm
        self.decoder = Decoder(backbone.map_width, backbone.map_size, 3 if kind.channels == "rgb" else 2, image_size)

    def forward(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Outcome:
        """Paint from `<task>.input`, uint8 (n, h, w, c); the target is uint8 (n, h, w, 3), the mask uint8 (n, h, w)."""
        own = f"{name}.{self.label.target}"
        image = batch[own if own in batch else self.label.target].permute(0, 3, 1, 2).float() / 255
        target = chroma(image) if self.label.channels == "chroma" else image
        grid = backbone(pixels(batch[f"{name}.input"], self.norm)).map
        painted = self.decoder(grid, target.shape[2:])

        hole = batch[f"{name}.mask"].unsqueeze(1).float() if self.label.masked else torch.ones_like(target[:, :1])
        weight = batch["weight"] * (hole.amax((1, 2, 3)) > 0)
        unit = SPREAD[self.label.channels]
        at = self.error(painted / unit, target / unit).mean(1, keepdim=True)
        counts = hole / _positions(hole)
        if self.label.masked:
            counts = counts + SEEN * (1 - hole) / _positions(1 - hole)
        with torch.no_grad():
            answer = painted.clamp(0, 1) if self.label.channels == "rgb" else painted
            metric, trivial = (psnr(x, target, hole) * weight for x in (answer, self._one_colour(target, hole)))
        return Outcome(
            loss=(at * counts).sum((1, 2, 3)) * weight,
            metric=metric.sum(),
            trivial=trivial.sum(),
            count=weight.sum(),
        )

    def error(self, painted: Tensor, target: Tensor) -> Tensor:
        """Elementwise error of two float tensors (n, c, h, w) in units of `SPREAD`."""
        if self.label.channels == "rgb":
            return F.mse_loss(painted, target, reduction="none")
        return F.smooth_l1_loss(painted, target, reduction="none")

    def _one_colour(self, target: Tensor, hole: Tensor) -> Tensor:
        if self.label.channels == "chroma":
            return torch.zeros_like(target)
        seen = 1 - hole if self.label.masked else hole
        colour = (target * seen).sum((2, 3), keepdim=True) / _positions(seen)
        return colour.expand_as(target)


class AbsolutePixelsObjective(PixelsObjective):
    """`pixels` by the absolute error, which is drawn less to the mean of possible answers (Isola et al. 2017, section 3.1)."""

    name = "pixels_l1"

    def error(self, painted: Tensor, target: Tensor) -> Tensor:
        """As in `PixelsObjective`."""
        return (painted - target).abs()


def chroma(image: Tensor) -> Tensor:
    """Colour differences (Cb, Cr) of BT.601, float (n, 2, h, w) in -0.5..0.5, of RGB, float (n, 3, h, w) in 0..1; grey is 0."""
    red, green, blue = image.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1)


def psnr(answer: Tensor, target: Tensor, hole: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, float (n,), over the pixels where `hole` (n, 1, h, w) is 1; at most `BEST_PSNR`."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    everywhere = peak_signal_noise_ratio(answer * hole, target * hole, data_range=1.0, reduction="none", dim=(1, 2, 3))
    share = hole.mean((1, 2, 3))  # outside the hole the error is 0 and thins the mean out by just this factor
    return (everywhere + 10 * share.clamp(min=1e-12).log10()).clamp(max=BEST_PSNR)


def _positions(area: Tensor) -> Tensor:
    """How many positions an area, float (n, 1, h, w) of 0 and 1, has in each image: (n, 1, 1, 1), at least 1."""
    return area.sum((2, 3), keepdim=True).clamp(min=1)
