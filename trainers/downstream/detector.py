"""A backbone with a feature pyramid and the head of FCOS, which finds boxes, for fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.ops import FeaturePyramidNetwork

from pipeline.recipe.schema import Recipe
from trainers.downstream.problem import TunedNetwork
from trainers.networks.backbones import Backbone, build_backbone, seeded
from trainers.networks.inputs import Normaliser
from trainers.networks.precision import in_float32
from trainers.objectives import Outcome

OBJECTIVE = "box"
MOST_FOUND = 100
"""Boxes that are found in one image at most, as COCO counts no more."""

_LEAST_SCORE = 0.01
_STEP, _NARROWEST, _WIDEST = 32, 64, 256  # channels of the pyramid; its normalisation has groups of 32


class Detector(TunedNetwork):
    """Predicts the columns `boxes` and `box_class` from the column `image`; nothing is frozen.

    It is FCOS (Tian et al., FCOS: a simple and strong anchor-free object detector, TPAMI 2020) on a feature pyramid (Lin et al.,
    Feature pyramid networks for object detection, CVPR 2017) of the backbone's last three resolutions, or of fewer where it has
    fewer. The pyramid has as many channels as the finest of them, from 64 to 256. A place of a map stands for the middle of its
    part of the image. The head is torchvision's; it has no batch normalisation.

    Args: as of `DownstreamProblem.build`.
    """

    def __init__(self, recipe: Recipe, classes: int, weights: dict[str, Any] | None) -> None:
        super().__init__()
        self.backbone = build_backbone(recipe.training.backbone, recipe.image.size, recipe.seed, ("pyramid",))
        self.untrained = [] if weights is None else self.backbone.load(weights)
        widths = self.backbone.pyramid_widths
        width = min(max(-(-widths[0] // _STEP) * _STEP, _NARROWEST), _WIDEST)
        with seeded(recipe.seed):
            pyramid = FeaturePyramidNetwork(widths, width)
            pyramid.out_channels = width
            head = _ImageByImageHead(width, 1, classes)
            self.head = FCOS(pyramid, classes, head=head, score_thresh=_LEAST_SCORE, detections_per_img=MOST_FOUND)
        self.pixels = Normaliser(recipe.image.mean, recipe.image.std)

    def normalising(self) -> nn.Module:
        return _MapsAndHead(self.backbone, self.head)

    def answers(self, image: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The head's answers at all places of all levels, float32 (n, places, ...) by name; and the places of each level.

        Args:
            image: uint8 (n, h, w, 3).

        Returns:
            Also float32 (places, 4) for each level: left, top, right, bottom of the part of the image that a place stands for.
        """
        levels = _levels(self.backbone, self.head, self.pixels(image))
        found = {name: answer.float() for name, answer in self.head.head(levels).items()}
        return found, [_places(level, (image.shape[1], image.shape[2])) for level in levels]

    def boxes(self, image: Tensor) -> list[dict[str, Tensor]]:
        """For each of uint8 images (n, h, w, 3) its `boxes`, float32 (k, 4), `labels`, int64 (k,), and `scores`, float32 (k,).

        They are ordered by score, at most `MOST_FOUND` an image; boxes of a class that overlap much are one.
        """
        found, places = self.answers(image)
        sizes, n = [len(level) for level in places], len(image)
        by_level = {name: list(answer.split(sizes, 1)) for name, answer in found.items()}
        with in_float32(image.device):
            boxes: list[dict[str, Tensor]] = self.head.postprocess_detections(by_level, [places] * n, [image.shape[1:3]] * n)
        return boxes

    def forward(self, batch: dict[str, Tensor], only: str = OBJECTIVE) -> dict[str, Outcome]:
        """FCOS's loss and the IoU of boxes, each a mean over an image's places in the middle of objects, as the only objective.

        An image is judged by itself, so that a sum over images is the same on any number of ranks (FCOS divides by the objects of
        the batch). The trivial answer at those places is the mean box of the batch. An image without boxes teaches what is
        background, and counts as IoU 0 in both. Crowds are left out, and the places in them that stand for no object; so are
        boxes without area.
        """
        found, places = self.answers(batch["image"])
        boxes, classes, crowd = batch["boxes"].float(), batch["box_class"], batch["crowd"]
        there = (classes >= 0) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
        targets = [
            {
                "boxes": boxes[i, there[i] & ~crowd[i]],
                "labels": classes[i, there[i] & ~crowd[i]],
                "crowd": boxes[i, there[i] & crowd[i]],
            }
            for i in range(len(boxes))
        ]
        with in_float32(boxes.device):
            anchors = [torch.cat(places)] * len(targets)
            judged = self.head.compute_loss(targets, found, anchors, [len(level) for level in places])
        weight = batch["weight"]
        loss, metric, trivial = ((weight * judged[name]).sum() for name in ("loss", "iou", "trivial"))
        return {only: Outcome(loss, metric, trivial, weight.sum())}


class _ImageByImageHead(FCOSHead):
    """FCOS's head whose losses are those of each image alone; FCOS has matched places to objects when it asks for them."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """`loss`, `iou` and `trivial` of each image, float32 (n,); arguments as torchvision has them, and `crowd` in targets."""
        losses = []
        for i, (target, places, matched) in enumerate(zip(targets, anchors, matched_idxs)):
            kept = (matched >= 0) | ~_inside(places, target["crowd"])
            own = {name: answer[i : i + 1, kept] for name, answer in head_outputs.items()}
            losses.append(sum(super().compute_loss([target], own, [places[kept]], [matched[kept]]).values()))
        iou, trivial = self._ious(
            targets, head_outputs["bbox_regression"].detach(), torch.stack(anchors), torch.stack(matched_idxs)
        )
        return {"loss": torch.stack(losses), "iou": iou, "trivial": trivial}

    def _ious(self, targets: list[dict[str, Tensor]], answer: Tensor, places: Tensor, matched: Tensor) -> tuple[Tensor, Tensor]:
        on = matched >= 0
        share = on / on.sum(1, keepdim=True).clamp_min(1)
        one_more = [
            torch.cat([target["boxes"], target["boxes"].new_zeros(1, 4)]) for target in targets
        ]  # for places of no object
        true = torch.stack([boxes[rows] for boxes, rows in zip(one_more, matched)])
        usual = self.box_coder.encode(places, true)[on].mean(0).nan_to_num().expand_as(answer)
        given = (_iou(self.box_coder.decode(distances, places), true) for distances in (answer, usual))
        iou, trivial = ((share * torch.where(on, each, 0)).sum(1) for each in given)
        return iou, trivial


class _MapsAndHead(nn.Module):
    """From normalised images to the head's answers."""

    def __init__(self, backbone: Backbone, head: FCOS) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.train(backbone.training)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head.head(_levels(self.backbone, self.head, x))["cls_logits"]
        return answer


def _levels(backbone: Backbone, head: FCOS, x: Tensor) -> list[Tensor]:
    maps = backbone(x).pyramid
    return list(head.backbone({str(level): each for level, each in enumerate(maps)}).values())


def _places(level: Tensor, size: tuple[int, int]) -> Tensor:
    """The parts of an image of `size` (h, w) that the places of a map stand for, float32 (places, 4), row by row."""
    down, across = (torch.arange(n + 1, device=level.device) * (side / n) for n, side in zip(level.shape[2:], size))
    top, left = torch.meshgrid(down[:-1], across[:-1], indexing="ij")
    bottom, right = torch.meshgrid(down[1:], across[1:], indexing="ij")
    return torch.stack([left, top, right, bottom], -1).reshape(-1, 4)


def _inside(places: Tensor, boxes: Tensor) -> Tensor:
    """Whether the middle of each place is in one of the boxes, bool (places,)."""
    middle = (places[:, None, :2] + places[:, None, 2:]) / 2
    return ((middle > boxes[:, :2]) & (middle < boxes[:, 2:])).all(-1).any(1)


def _iou(one: Tensor, other: Tensor) -> Tensor:
    """The IoU of each box with the other of the same row; boxes are (..., 4)."""
    both = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp_min(0).prod(-1)
    union = sum((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, other)) - both
    return both / union.clamp_min(1e-6)
