"""The same methods by lightly: its transforms, heads and losses in a plain loop over a torch DataLoader, as in its examples."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, SwaVLoss
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import BYOLTransform, MoCoV2Transform, SimCLRTransform, SwaVTransform
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.methods.rows import MEAN, STD
from pipeline.recipe import Recipe
from pipeline.shards.opening import open_corpus
from trainers.learning.optim import build_optimizer
from trainers.networks.backbones import Backbone, build_backbone

_PIXELS = {"mean": list(MEAN), "std": list(STD)}
_WIDTH = 128


class _Photos(Dataset[Any]):
    """Photos that lie encoded in memory, decoded by PIL."""

    def __init__(self, shards: Any, transform: Callable[[Image.Image], Any]) -> None:
        corpus = open_corpus(shards)
        rows = [range(int(n)) for n in corpus.counts]
        self._photos = [bytes(sample.encoded) for shard, each in enumerate(rows) for sample in corpus.read(shard, each)]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, i: int) -> Any:
        return self._transform(Image.open(io.BytesIO(self._photos[i])).convert("RGB"))


class _Method(nn.Module):
    """Base class: a backbone, and what lightly's example of the method builds on it."""

    transform: Callable[[Image.Image], Any]

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def loss(self, views: list[Tensor], step: int, steps: int) -> Tensor:
        """The loss of a batch of views, each float (n, 3, h, w)."""
        raise NotImplementedError

    def vector(self, x: Tensor) -> Tensor:
        """The feature vectors."""
        vector: Tensor = self.backbone(x).vector
        return vector


class SimCLR(_Method):
    """SimCLR."""

    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0, normalize=_PIXELS)

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        width = backbone.vector_width
        self.head, self.criterion = heads.SimCLRProjectionHead(width, width, _WIDTH), NTXentLoss(temperature=0.5)

    def loss(self, views: list[Tensor], step: int, steps: int) -> Tensor:
        loss: Tensor = self.criterion(*(self.head(self.vector(view)) for view in views))
        return loss


class MoCo(_Method):
    """MoCo v2, each view as query and as key in turn."""

    transform = MoCoV2Transform(input_size=32, gaussian_blur=0.0, normalize=_PIXELS)

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        width = backbone.vector_width
        self.head = heads.MoCoProjectionHead(width, width, _WIDTH)
        self.slow_backbone, self.slow_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.slow_backbone)
        deactivate_requires_grad(self.slow_head)
        # A bank for each direction: one bank would hold a query's own key when the second loss is computed.
        self.criteria = nn.ModuleList(NTXentLoss(temperature=0.1, memory_bank_size=(4096, _WIDTH)) for _ in range(2))

    def loss(self, views: list[Tensor], step: int, steps: int) -> Tensor:
        update_momentum(self.backbone, self.slow_backbone, 0.99)
        update_momentum(self.head, self.slow_head, 0.99)
        one, other = views
        losses = [loss(self.head(self.vector(q)), self._key(k)) for loss, q, k in zip(self.criteria, (one, other), (other, one))]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _key(self, view: Tensor) -> Tensor:
        key: Tensor = self.slow_head(self.slow_backbone(view).vector)
        return key


class BYOL(_Method):
    """BYOL."""

    transform = BYOLTransform(
        BYOLView1Transform(input_size=32, gaussian_blur=0.0, normalize=_PIXELS),
        BYOLView2Transform(input_size=32, gaussian_blur=0.0, solarization_prob=0.0, normalize=_PIXELS),
    )

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.head = heads.BYOLProjectionHead(backbone.vector_width, 1024, 256)
        self.predictor = heads.BYOLPredictionHead(256, 1024, 256)
        self.slow_backbone, self.slow_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.slow_backbone)
        deactivate_requires_grad(self.slow_head)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, views: list[Tensor], step: int, steps: int) -> Tensor:
        momentum = cosine_schedule(step, steps, 0.99, 1)
        update_momentum(self.backbone, self.slow_backbone, momentum)
        update_momentum(self.head, self.slow_head, momentum)
        predicted = [self.predictor(self.head(self.vector(view))) for view in views]
        with torch.no_grad():
            slow = [self.slow_head(self.slow_backbone(view).vector) for view in views]
        return (self.criterion(predicted[0], slow[1]) + self.criterion(predicted[1], slow[0])) / 2


class SwAV(_Method):
    """SwAV with two views."""

    transform = SwaVTransform(
        crop_sizes=(32,),
        crop_counts=(2,),
        crop_min_scales=(0.14,),
        crop_max_scales=(1.0,),
        cj_strength=0.5,
        gaussian_blur=0.0,
        normalize=_PIXELS,
    )

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.head = heads.SwaVProjectionHead(backbone.vector_width, 1024, _WIDTH)
        self.prototypes, self.criterion = heads.SwaVPrototypes(_WIDTH, 512), SwaVLoss()

    def loss(self, views: list[Tensor], step: int, steps: int) -> Tensor:
        self.prototypes.normalize()
        self.prototypes.n_steps_frozen_prototypes = max(1, round(0.01 * steps))
        scores = [self.prototypes(nn.functional.normalize(self.head(self.vector(view)), dim=1), step) for view in views]
        loss: Tensor = self.criterion(scores, [])
        return loss


METHODS: dict[str, type[_Method]] = {"simclr": SimCLR, "moco": MoCo, "byol": BYOL, "swav": SwAV}


def training(name: str, recipe: Recipe, steps: int) -> Iterator[Backbone]:
    """Train for so many steps, with a recipe's shards, backbone, batch, optimizer and seed.

    Yields the backbone before the first step and after each.
    """
    torch.manual_seed(recipe.seed)
    spec = recipe.training
    method = METHODS[name](build_backbone(spec.backbone, recipe.image.size, recipe.seed, ("vector",))).train()
    loader = DataLoader(_Photos(recipe.corpus.shards, method.transform), spec.batch, shuffle=True, drop_last=True)
    optimizer, scheduler = build_optimizer(spec.optimizer, method, steps, spec.batch)
    yield method.backbone
    for step, views in zip(range(steps), _forever(loader)):
        optimizer.zero_grad()
        method.loss(views, step, steps).backward()
        optimizer.step()
        scheduler.step()
        yield method.backbone


def _forever(loader: DataLoader[Any]) -> Iterator[list[Tensor]]:
    while True:
        yield from loader
