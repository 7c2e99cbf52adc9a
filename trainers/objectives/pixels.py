"""Objectives of image labels: paint the image by a decoder or a corrector; squared or absolute error, PSNR."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.labels import Pixels
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone, Output
from trainers.networks.inputs import Normaliser
from trainers.objectives.base import Objective, Outcome, chosen_objective
from trainers.objectives.decoder import DETAIL, WIDEST, Corrector, Decoder

SPREAD = {"rgb": 0.23, "chroma": 0.06}
"""Root mean square distance of a photo's pixels from its mean colour, and of its chroma from grey, measured on ImageNet photos.
They are the units of errors: the loss of an answer of one colour is then about 1, comparable to cross-entropies."""

SEEN = 0.1
"""Weight of the mean error outside the hole, where that inside has 1; enough for the filling to match its surroundings."""

CODE, START = 128, 4
"""Numbers of the bottleneck if the label gives none, and side of the small map from which the decoder behind it starts."""

BEST_PSNR = 60.0
"""Decibels at which the metric is capped; for an exact answer it would be infinite."""


class PixelsObjective(Objective):
    """Paints the task's target image. Loss and answer depend on the label:

    - `rgb`: squared error of the colours (Pathak et al. 2016, the reconstruction loss); with a mask, chiefly in the hole.
    - `chroma`: smooth absolute error of the two colour-difference channels (Zhang et al. 2017, for colorization).
    - with a grid: squared error in the hole, of pixels standardised in each cell (He et al. 2022, section 3).
    - with a spoilt input: the answer is that input, enlarged if it is smaller, plus a correction.

    The metric is the PSNR in decibels of pixels in 0..1; with a mask, in the hole only. The trivial answer is the spoilt input if
    there is one; with a grid each cell's mean; else one colour for the whole image: the mean of the visible pixels (`rgb`), or
    grey (`chroma`). If the label is a whole RGB image, a further metric is its structural similarity, `ssim`.
    """

    name = "pixels"
    kind = Pixels
    needs: ClassVar[tuple[Output, ...]] = ("map",)
    metric = "psnr"
    higher_is_better = True

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        kind = task.label_kind()
        assert isinstance(kind, Pixels)
        self.label = kind
        self.norm = task.input_norm
        self.settings = self.Parameters(**chosen_objective(task)[1])
        self.decoder = self.build(backbone, image_size)

    def build(self, backbone: Backbone, size: int) -> nn.Module:
        """Build the layers that paint an image of `size` pixels from the backbone's features."""
        if self.label.spoilt:
            return Corrector(backbone.map_width, backbone.map_size, size, detail=self.detail)
        channels = 3 if self.label.channels == "rgb" else 2
        return Decoder(backbone.map_width, backbone.map_size, channels, size, self._relative, self.detail)

    @property
    def detail(self) -> int:
        """Side of the smallest detail that the decoder paints, pixels."""
        return DETAIL

    def paint(self, backbone: Backbone, decoder: nn.Module, x: Tensor, extent: tuple[int, int]) -> Tensor:
        """Paint an image of (h, w) `extent`, or a correction of one, from normalised pixels, float (n, 3, h, w)."""
        grid = backbone(x).map
        painted: Tensor = decoder(x, grid) if self.label.spoilt else decoder(grid, extent)
        return painted

    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """The painted image or correction, float (n, c, h, w), for `<task>.input`, uint8 (n, h, w, c); see `paint`."""
        return self.answer_by(backbone, self.decoder, batch, name, pixels)

    def answer_by(
        self, backbone: Backbone, decoder: nn.Module, batch: dict[str, Tensor], name: str, pixels: Normaliser
    ) -> Tensor:
        """What `answer` returns, by networks given."""
        _, height, width, _ = self._target(batch, name).shape
        extent = (height, width)
        return self.paint(backbone, decoder, enlarged(pixels(batch[f"{name}.input"], self.norm), extent), extent)

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compare the painted image with the target, uint8 (n, h, w, 3); the mask, if there is one, is uint8 (n, h, w)."""
        given, (_, target, hole) = batch[f"{name}.input"], self._asked(batch, name)
        weight = counted(batch["weight"], hole)
        trivial, unit = self._trivial(target, given, hole)
        image = answer * unit + trivial if self._relative else answer
        at = self.error(image / unit, target / unit).mean(1, keepdim=True)
        counts = hole / _positions(hole)
        if self.label.masked and self.label.grid is None:
            counts = counts + SEEN * (1 - hole) / _positions(1 - hole)
        with torch.no_grad():
            final = image.clamp(0, 1) if self.label.channels == "rgb" else image
            metric, least = (psnr(x, target, hole) * weight for x in (final, trivial))
        return Outcome(
            loss=((at * counts).sum((1, 2, 3)) * weight).sum(),
            metric=metric.sum(),
            trivial=least.sum(),
            count=weight.sum(),
            also={"ssim": (ssim(final, target) * weight).sum()} if self._whole else {},
        )

    @torch.no_grad()
    def shown(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Tensor:
        """The painted image for people, float (n, 3, h, w) in 0..1; arguments as of `judge`."""
        return self.composed(answer, batch, name).clamp(0, 1)

    def composed(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Tensor:
        """The painted image, float (n, 3, h, w) around 0..1: a hole in its surroundings, colours with their brightness.

        Arguments as of `judge`.
        """
        whole, target, hole = self._asked(batch, name)
        trivial, unit = self._trivial(target, batch[f"{name}.input"], hole)
        image = answer * unit + trivial if self._relative else answer
        if self.label.channels == "chroma":
            image = coloured(whole, image)
        return image * hole + whole * (1 - hole)

    def target(self, batch: dict[str, Tensor], name: str) -> Tensor:
        """The target image, float (n, 3, h, w) in 0..1; arguments as of `judge`."""
        return self._asked(batch, name)[0]

    def _asked(self, batch: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor, Tensor]:
        """The target image, float (n, 3, h, w) in 0..1; what is asked of it, (n, c, h, w); and where, (n, 1, h, w) of 0 and 1."""
        whole = self._target(batch, name).permute(0, 3, 1, 2).float() / 255
        target = chroma(whole) if self.label.channels == "chroma" else whole
        return whole, target, batch[f"{name}.mask"].unsqueeze(1).float() if self.label.masked else torch.ones_like(target[:, :1])

    def _target(self, batch: dict[str, Tensor], name: str) -> Tensor:
        """The target's column: the task's, if it has one, else the batch's."""
        own = f"{name}.{self.label.target}"
        return batch[own if own in batch else self.label.target]

    @property
    def _whole(self) -> bool:
        """Whether the label is a whole RGB image, so that structural similarity can be measured."""
        return not self.label.masked and self.label.channels == "rgb"

    @property
    def _relative(self) -> bool:
        """Whether the painted image is added, in units of errors, to the trivial answer.

        It is not if the label is a whole RGB image, whose mean must go through the network like the rest.
        """
        return self.label.spoilt or self.label.masked or self.label.channels == "chroma"

    def _trivial(self, target: Tensor, given: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        """The trivial answer, float (n, c, h, w), and the unit of errors, which can be broadcast to that shape."""
        unit = target.new_tensor(SPREAD[self.label.channels])
        if self.label.grid is not None:
            mean, deviation = cells(target, self.label.grid)
            return mean.expand_as(target), deviation
        if self.label.channels == "chroma":
            return torch.zeros_like(target), unit
        if not self.label.spoilt and not self.label.masked:
            return target.mean((2, 3), keepdim=True).expand_as(target), unit
        shown = enlarged(given.permute(0, 3, 1, 2).float() / 255, (target.shape[2], target.shape[3]))
        if self.label.spoilt:
            return shown, unit
        seen = 1 - hole
        return ((shown * seen).sum((2, 3), keepdim=True) / _positions(seen)).expand_as(target), unit

    def error(self, painted: Tensor, target: Tensor) -> Tensor:
        """Elementwise error of two float tensors (n, c, h, w) in units of `SPREAD`."""
        if self.label.channels == "rgb":
            return F.mse_loss(painted, target, reduction="none")
        return F.smooth_l1_loss(painted, target, reduction="none")


class AbsolutePixelsObjective(PixelsObjective):
    """`pixels` with the absolute error, which favours the mean of possible answers less (Isola et al. 2017, section 3.1)."""

    name = "pixels_l1"

    def error(self, painted: Tensor, target: Tensor) -> Tensor:
        """As in `PixelsObjective`."""
        return (painted - target).abs()


class BottleneckObjective(PixelsObjective):
    """`pixels` painted from a short vector, to which the feature vector is reduced: the label's `code` numbers, or 128."""

    name = "bottleneck"
    needs: ClassVar[tuple[Output, ...]] = ("vector",)

    def build(self, backbone: Backbone, size: int) -> nn.Module:
        """As in `PixelsObjective`."""
        code = self.label.code or CODE
        start = nn.Linear(code, WIDEST * START * START)
        decoder = Decoder(WIDEST, (START, START), 3 if self.label.channels == "rgb" else 2, size)
        return nn.ModuleDict({"code": nn.Linear(backbone.vector_width, code), "start": start, "decoder": decoder})

    def paint(self, backbone: Backbone, decoder: nn.Module, x: Tensor, extent: tuple[int, int]) -> Tensor:
        """As in `PixelsObjective`."""
        assert isinstance(decoder, nn.ModuleDict)
        start = decoder["start"](decoder["code"](backbone(x).vector))
        return decoder["decoder"](start.view(-1, WIDEST, START, START), extent)


def counted(weight: Tensor, hole: Tensor) -> Tensor:
    """Weights of samples, float (n,): 0 where there is no hole, (n, 1, h, w), to fill."""
    return weight * (hole.amax((1, 2, 3)) > 0)


def enlarged(x: Tensor, extent: tuple[int, int]) -> Tensor:
    """Resize images, float (n, c, h, w), bilinearly to `extent`; images of that size are returned unchanged."""
    return x if x.shape[2:] == extent else F.interpolate(x, extent, mode="bilinear", align_corners=False)


def cells(target: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each cell of a centred grid, float (n, 1, h, w), over its pixels and channels.

    The square of one level is added to the variance, so that flat cells stay near zero. Outside the grid the mean is 0 and the
    deviation 1.
    """
    side = target.shape[2] // grid
    margin = (target.shape[2] - side * grid) // 2
    rest = target.shape[2] - side * grid - margin
    inner = target[:, :, margin : margin + side * grid, margin : margin + side * grid]
    squares = inner.unflatten(3, (grid, side)).unflatten(2, (grid, side))
    variance, mean = torch.var_mean(squares, dim=(1, 3, 5), correction=0)

    def spread(values: Tensor, beyond: float) -> Tensor:
        image = values.repeat_interleave(side, 1).repeat_interleave(side, 2).unsqueeze(1)
        return F.pad(image, (margin, rest, margin, rest), value=beyond)

    return spread(mean, 0.0), spread((variance + 1 / 255**2).sqrt(), 1.0)


def chroma(image: Tensor) -> Tensor:
    """Colour differences (Cb, Cr) of BT.601, float (n, 2, h, w) in -0.5..0.5, of RGB, float (n, 3, h, w) in 0..1; grey is 0."""
    red, green, blue = image.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1)


def coloured(image: Tensor, differences: Tensor) -> Tensor:
    """RGB, float (n, 3, h, w), with the luma of an image and other colour differences (`chroma`)."""
    red, green, blue = image.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    blue, red = luma + 1.772 * differences[:, 0], luma + 1.402 * differences[:, 1]
    return torch.stack([red, (luma - 0.299 * red - 0.114 * blue) / 0.587, blue], 1)


def psnr(answer: Tensor, target: Tensor, hole: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, float (n,), over the pixels where `hole` (n, 1, h, w) is 1; at most `BEST_PSNR`."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    everywhere = peak_signal_noise_ratio(answer * hole, target * hole, data_range=1.0, reduction="none", dim=(1, 2, 3))
    share = hole.mean((1, 2, 3))  # outside the hole the error is 0, which makes the mean smaller by just this factor
    return (everywhere + 10 * share.clamp(min=1e-12).log10()).clamp(max=BEST_PSNR)


@torch.no_grad()
def ssim(answer: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of images of 0..1, float (n,), by torchmetrics (Wang et al. 2004: Gaussian window of 11 pixels)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(answer, target, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)  # it is a pair only with `return_full_image`
    return found


def _positions(area: Tensor) -> Tensor:
    """How many positions an area, float (n, 1, h, w) of 0 and 1, has in each image: (n, 1, 1, 1), at least 1."""
    return area.sum((2, 3), keepdim=True).clamp(min=1)
