"""Learning from several views of a photo: what all methods share - encoding, heads, momentum networks, signs of collapse."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.labels import Views
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone, Output
from trainers.networks.exchange import Rows
from trainers.networks.inputs import Normaliser
from trainers.objectives.base import Objective, Outcome, chosen

RANKED = 256
"""Samples of a batch on which the effective rank is measured."""

MINUS = -1e9
"""A logit of what does not count; finite, so that a row of nothing else gives no NaN."""


@dataclass(frozen=True)
class Shared:
    """What a loss knows of the samples of all ranks.

    Args:
        rows: this rank's rows among all.
        weight: of this rank's samples, float32 (n,), 0 or 1.
        weights: of those of all ranks, float32 (total,).
        ids: of the samples of all ranks, int64 (total,).
    """

    rows: Rows
    weight: Tensor
    weights: Tensor
    ids: Tensor

    @classmethod
    def of(cls, batch: dict[str, Tensor], alone: bool) -> Shared:
        """Of a batch of columns; `alone` as of `Rows`."""
        weight = batch["weight"]
        rows = Rows(len(weight), weight.device, alone)
        return cls(rows, weight, rows.gather(weight), rows.gather(batch["id"].view(torch.int64)))

    def count(self) -> Tensor:
        """How many samples of all ranks count; at least 1."""
        return self.weights.sum().clamp(min=1)

    def places(self) -> Tensor:
        """Of each of this rank's samples its place among all, int64 (n,)."""
        return self.rows.start + torch.arange(len(self.weight), device=self.weight.device)

    def by_id(self, x: Tensor) -> Tensor:
        """Rows of all ranks, (total, ...), without the samples of weight 0 and in order of id, whatever ranks there are."""
        order = self.ids.argsort(stable=True)
        return x[order[self.weights[order] > 0]]


@dataclass(frozen=True)
class Compared:
    """What a method makes of a batch.

    Args:
        loss: sum over this rank's samples, with its graph.
        one, other: what represents two views of each sample, float32 (n, d); of these the signs of collapse are taken.
        also: further means over the batch, scalars by name.
    """

    loss: Tensor
    one: Tensor
    other: Tensor
    also: dict[str, Tensor] = field(default_factory=dict)


class ViewObjective(Objective):
    """What the objectives share that compare views of a photo.

    The metric, `nearest`, is the share of the samples whose other view is the nearest of those of all samples of the batch, by
    cosine; the trivial answer is chance. Beside it `feature_std`, the standard deviation of the normalised representation over
    the batch times the root of its width, which is about 1 where it fills all directions and 0 where it is one point; and
    `effective_rank`, how many directions it uses (RankMe: Garrido et al. 2023).

    Large views go through the backbone in one pass, small ones in another; heads and losses are computed in float32.
    """

    kind = Views
    needs: ClassVar[tuple[Output, ...]] = ("vector",)
    metric = "nearest"
    higher_is_better = True

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        kind = task.label_kind()
        assert isinstance(kind, Views)
        self.views, self.norm = kind.count, task.input_norm

    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """Feature vectors of all views, the large ones first, float (n, v, width), of uint8 (n, k, s, s, 3) of each size."""
        return self.encode(backbone, batch, name, pixels)

    def encode(
        self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser, views: slice | None = None
    ) -> Tensor:
        """Feature vectors, (n, v, width), of the large `views` alone, or of all, the small ones last."""
        columns = [batch[f"{name}.input"][:, views or slice(None)]]
        if views is None and f"{name}.small" in batch:
            columns.append(batch[f"{name}.small"])
        vectors = [backbone(pixels(column, self.norm)).vector for column in columns]
        return torch.cat([v.unflatten(0, column.shape[:2]) for v, column in zip(vectors, columns)], 1)

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compare the views' features; in evaluation each rank compares its own samples alone."""
        shared = Shared.of(batch, alone=not self.training)
        found = self.compare(answer, shared)
        count = shared.weight.sum()
        with torch.no_grad():
            right, signs = signs_of_collapse(found.one.detach(), found.other.detach(), shared)
        return Outcome(
            loss=found.loss,
            metric=right,
            trivial=count / shared.count(),
            count=count,
            also={key: value.detach() * count for key, value in {**signs, **found.also}.items()},
        )

    @abstractmethod
    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """The method's loss on what `answer` gave, in float32."""


class MomentumObjective(ViewObjective):
    """A view objective with a momentum network: a copy of backbone and heads that follows them slowly and is not trained.

    What `answer` gives has the momentum network's features of the large views behind those of the views themselves.
    """

    schedule: tuple[float, float]
    """Momentum at the start and at the end of the run, along half a cosine in between."""

    def keep_copy(self, backbone: Backbone, *heads: str) -> None:
        """Make the momentum network, of a backbone and of the heads of these names; to be called when these are there."""
        self.heads = heads
        self.target_backbone = frozen(backbone)
        self.target_heads = nn.ModuleDict({head: frozen(getattr(self, head)) for head in heads})

    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """Feature vectors (n, v + k, width): of all views; then those of the k large ones by the momentum network."""
        with torch.no_grad():
            target = self.encode(self.target_backbone, batch, name, pixels, slice(0, self.views))
        return torch.cat([self.encode(backbone, batch, name, pixels), target], 1)

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The features of all views, and those of the large ones by the momentum network."""
        return features[:, : -self.views], features[:, -self.views :].detach()

    @torch.no_grad()
    def after_update(self, backbone: Backbone) -> None:
        """As in `Objective`; the momentum network follows."""
        rate = 1 - cosine(*self.schedule, self.step, self.steps)
        pairs = [(self.target_backbone, backbone), *((self.target_heads[head], getattr(self, head)) for head in self.heads)]
        for target, source in pairs:
            for follower, leader in zip(target.parameters(), source.parameters(), strict=True):
                follower.lerp_(leader, rate)


def parameters_of(task: Task) -> dict[str, Any]:
    """What a task sets of its objective's parameters."""
    return chosen(task)[1]


def frozen(module: nn.Module) -> Any:
    """A copy whose weights are not trained."""
    return copy.deepcopy(module).requires_grad_(False)


def mlp(widths: list[int], last_norm: bool = False, affine: bool = True) -> nn.Sequential:
    """Linear layers of these widths with batch normalisation and ReLU between them.

    Args:
        widths: of the input, of each hidden layer, and of the output.
        last_norm: whether the output is normalised over the batch, too, in which case the last layer has no bias.
        affine: whether that last normalisation has weights.
    """
    layers: list[nn.Module] = []
    for width, following in pairwise(widths[:-1]):
        layers += [nn.Linear(width, following, bias=False), nn.BatchNorm1d(following), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not last_norm))
    return nn.Sequential(*layers, *([nn.BatchNorm1d(widths[-1], affine=affine)] if last_norm else []))


def each(head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """What a head makes of each view's vector, (n, v, d), of vectors (n, v, width); all views in one batch."""
    return head(features.flatten(0, 1)).unflatten(0, features.shape[:2])


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """A value that goes from `start` to `end` over a run along half a cosine."""
    return end - (end - start) * (1 + math.cos(math.pi * step / max(1, steps))) / 2


def info_nce(queries: Tensor, keys: Tensor, shared: Shared, temperature: float) -> Tensor:
    """Cross-entropy of each of this rank's samples among the keys of all samples, float (n,).

    Args:
        queries: (n, d), normalised.
        keys: (total, d), of all ranks, normalised.
        shared: the samples.
        temperature: that the cosines are divided by.
    """
    logits = (queries @ keys.T / temperature).masked_fill(shared.weights == 0, MINUS)
    return F.cross_entropy(logits, shared.places(), reduction="none")


def signs_of_collapse(one: Tensor, other: Tensor, shared: Shared) -> tuple[Tensor, dict[str, Tensor]]:
    """How many of this rank's samples have their other view nearest, and the means that `ViewObjective` describes."""
    everyone = shared.rows.gather(F.normalize(other, dim=1))
    alike = (F.normalize(one, dim=1) @ everyone.T).masked_fill(shared.weights == 0, MINUS)
    right = ((alike.argmax(1) == shared.places()) * shared.weight).sum()
    weights, width = shared.weights.unsqueeze(1), everyone.shape[1]
    mean = (everyone * weights).sum(0) / shared.count()
    variance = ((everyone - mean).square() * weights).sum(0) / shared.count()
    rank = effective_rank((everyone * weights)[:RANKED])
    return right, {"feature_std": variance.sqrt().mean() * math.sqrt(width), "effective_rank": rank}


def effective_rank(x: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values of float (n, d), in shares of their sum (Garrido et al. 2023)."""
    x = x.double().nan_to_num(0.0, 0.0, 0.0)
    squares = torch.linalg.eigvalsh(x @ x.T if len(x) < x.shape[1] else x.T @ x)
    values = squares.clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp().float()
