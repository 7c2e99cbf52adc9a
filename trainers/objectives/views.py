"""Base classes of objectives that learn from several views of a photo, with their heads, momentum networks and metrics."""

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
from trainers.objectives.base import Objective, Outcome, chosen_objective

RANKED = 256
"""How many samples of a batch the effective rank is measured on."""

MINUS = -1e9
"""Logit of entries that do not count; finite, so that a row of such entries gives no NaN."""


@dataclass(frozen=True)
class Shared:
    """Weights and ids of the samples of all ranks, and the exchange of rows with other ranks.

    Args:
        rows: exchanges rows with the other ranks.
        weight: weights of this rank's samples, float32 (n,), 0 or 1.
        weights: weights of the samples of all ranks, float32 (total,).
        ids: ids of the samples of all ranks, int64 (total,).
    """

    rows: Rows
    weight: Tensor
    weights: Tensor
    ids: Tensor

    @classmethod
    def of(cls, batch: dict[str, Tensor], alone: bool) -> Shared:
        """Take them from the columns of this rank's batch; `alone` as in `Rows`."""
        weight = batch["weight"]
        rows = Rows(len(weight), weight.device, alone)
        return cls(rows, weight, rows.gather(weight), rows.gather(batch["id"].view(torch.int64)))

    def count(self) -> Tensor:
        """Number of samples of weight 1 on all ranks; at least 1."""
        return self.weights.sum().clamp(min=1)

    def places(self) -> Tensor:
        """The place of each of this rank's samples among those of all ranks, int64 (n,)."""
        return self.rows.start + torch.arange(len(self.weight), device=self.weight.device)

    def centred(self, gathered: Tensor) -> Tensor:
        """Subtract the mean of the samples of weight 1 from the vectors of all ranks, (total, v, d); the other rows become 0."""
        weights = self.weights.view(-1, 1, 1)
        return (gathered - (gathered * weights).sum(0) / self.count()) * weights

    def by_id(self, x: Tensor) -> Tensor:
        """Sort the rows of all ranks, (total, ...), by id and leave out those of weight 0: the same for any number of ranks."""
        order = self.ids.argsort(stable=True)
        return x[order[self.weights[order] > 0]]


@dataclass(frozen=True)
class Compared:
    """Loss of a method on a batch, and the vectors on which its metrics are measured.

    Args:
        loss: sum over this rank's samples, with its graph.
        one: vectors that represent one view of each sample, float32 (n, d).
        other: the same for another view of each sample.
        also: further means over the batch, scalars by name.
    """

    loss: Tensor
    one: Tensor
    other: Tensor
    also: dict[str, Tensor] = field(default_factory=dict)


class ViewObjective(Objective):
    """Base class of objectives that compare views of a photo.

    The metric, `nearest`, is the share of samples whose one view is nearer, by cosine, to their other view than to that of any
    other sample of the batch; the trivial answer is chance. Two further metrics show a collapse. `feature_std` is the standard
    deviation of the normalised representation over the batch, times the root of its width: about 1 if representations fill all
    directions, 0 if all are the same. `effective_rank` is the number of directions that they use (RankMe: Garrido et al. 2023).

    Heads and losses are computed in float32.
    """

    kind = Views
    needs: ClassVar[tuple[Output, ...]] = ("vector",)
    metric = "nearest"
    higher_is_better = True
    needs_whole_batch: ClassVar[bool] = True
    views_apart: ClassVar[bool] = False
    """Whether each view is a batch of its own to backbone and heads, from which batch normalisation takes its statistics.

    Else all views of one size are one batch, which is faster.
    """

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        kind = task.label_kind()
        assert isinstance(kind, Views)
        self.views, self.norm = kind.count, task.input_norm

    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """Feature vectors, float (n, v, width), of all views, uint8 (n, k, s, s, 3) of each size; the large ones come first."""
        return self.encode(backbone, batch, name, pixels)

    def encode(
        self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser, views: slice | None = None
    ) -> Tensor:
        """Feature vectors, (n, v, width), of some large `views`, or, without that argument, of all views, the small ones last."""
        columns = [batch[f"{name}.input"][:, views or slice(None)]]
        if views is None and f"{name}.small" in batch:
            columns.append(batch[f"{name}.small"])
        if self.views_apart:
            columns = [one for column in columns for one in column.split(1, 1)]
        vectors = [backbone(pixels(column, self.norm)).vector for column in columns]
        return torch.cat([v.unflatten(0, column.shape[:2]) for v, column in zip(vectors, columns)], 1)

    def per_view(self, head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        """Apply a head to each view's vector, (n, v, width) to (n, v, d)."""
        if self.views_apart:
            return torch.stack([head(view) for view in features.unbind(1)], 1)
        return head(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compare the views' features; in evaluation each rank compares its own samples only."""
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
        """Compute the method's loss on what `answer` returned, in float32."""


class MomentumObjective(ViewObjective):
    """Base class of view objectives with a momentum network: a copy of backbone and heads that slowly follows their weights.

    The momentum network is not trained. `answer` returns the network's features, then those of the momentum network.
    """

    schedule: tuple[float, float]
    """Momentum at the start and at the end of the run; in between it follows half a cosine."""

    def make_momentum_network(self, backbone: Backbone, *heads: str) -> None:
        """Copy a backbone and the heads of these names, which must exist already, as the momentum network."""
        self.heads = heads
        self.target_backbone = frozen_copy(backbone)
        self.target_heads = nn.ModuleDict({head: frozen_copy(getattr(self, head)) for head in heads})

    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """Feature vectors (n, v + k, width): the network's of all v views, then the momentum network's of the k large ones."""
        with torch.no_grad():
            target = self.encode(self.target_backbone, batch, name, pixels, slice(0, self.views))
        return torch.cat([self.encode(backbone, batch, name, pixels), target], 1)

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Split what `answer` returned: the network's features of all views, and the momentum network's of the large ones."""
        return features[:, : -self.views], features[:, -self.views :].detach()

    @torch.no_grad()
    def after_update(self, backbone: Backbone) -> None:
        """As in `Objective`; moves the momentum network towards the network."""
        rate = 1 - cosine(*self.schedule, self.step, self.steps)
        pairs = [(self.target_backbone, backbone), *((self.target_heads[head], getattr(self, head)) for head in self.heads)]
        for target, source in pairs:
            for follower, leader in zip(target.parameters(), source.parameters(), strict=True):
                follower.lerp_(leader, rate)


def parameters_of(task: Task) -> dict[str, Any]:
    """The parameters that a task sets for its objective."""
    return chosen_objective(task)[1]


def frozen_copy(module: nn.Module) -> Any:
    """Copy a module; the weights of the copy are not trained."""
    return copy.deepcopy(module).requires_grad_(False)


def mlp(widths: list[int], last_norm: bool = False, affine: bool = True) -> nn.Sequential:
    """Build linear layers of these widths, with batch normalisation and ReLU between them.

    Args:
        widths: widths of the input, of each hidden layer, and of the output.
        last_norm: whether the output is normalised over the batch, too; the last layer then has no bias.
        affine: whether the normalisation of the output has weights.
    """
    layers: list[nn.Module] = []
    for width, following in pairwise(widths[:-1]):
        layers += [nn.Linear(width, following, bias=False), nn.BatchNorm1d(following), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not last_norm))
    return nn.Sequential(*layers, *([nn.BatchNorm1d(widths[-1], affine=affine)] if last_norm else []))


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """A value that goes from `start` to `end` over a run along half a cosine."""
    return end - (end - start) * (1 + math.cos(math.pi * step / max(1, steps))) / 2


def mean_products(predicted: Tensor, targets: Tensor) -> Tensor:
    """Mean inner product, float (n,), over all pairs of a view's (n, v, d) and another, large view's (n, k, d) vector."""
    products = predicted @ targets.transpose(1, 2)  # (n, v, k)
    v, k = products.shape[1:]
    total: Tensor = (products.sum((1, 2)) - products.diagonal(dim1=1, dim2=2).sum(1)) / (v * k - k)
    return total


def enqueue(queue: Tensor, filled: Tensor, rows: Tensor) -> None:
    """Put rows at the head of a queue, (size, ...), and drop its oldest; `filled`, int64 (), counts its rows in use."""
    filled.copy_((filled + len(rows)).clamp(max=len(queue)))
    queue.copy_(torch.cat([rows, queue])[: len(queue)])


def info_nce(queries: Tensor, keys: Tensor, shared: Shared, temperature: float) -> Tensor:
    """Cross-entropy of each of this rank's samples among the keys of all samples, float (n,).

    Args:
        queries: normalised vectors of this rank's samples, (n, d).
        keys: normalised vectors of the samples of all ranks, (total, d).
        shared: the samples of all ranks.
        temperature: number by which the cosines are divided.
    """
    logits = (queries @ keys.T / temperature).masked_fill(shared.weights == 0, MINUS)
    return F.cross_entropy(logits, shared.places(), reduction="none")


def signs_of_collapse(one: Tensor, other: Tensor, shared: Shared) -> tuple[Tensor, dict[str, Tensor]]:
    """Number of this rank's samples whose other view is the nearest, and the further metrics that `ViewObjective` describes."""
    gathered = shared.rows.gather(F.normalize(other, dim=1))
    alike = (F.normalize(one, dim=1) @ gathered.T).masked_fill(shared.weights == 0, MINUS)
    right = ((alike.argmax(1) == shared.places()) * shared.weight).sum()
    weights, width = shared.weights.unsqueeze(1), gathered.shape[1]
    mean = (gathered * weights).sum(0) / shared.count()
    variance = ((gathered - mean).square() * weights).sum(0) / shared.count()
    rank = effective_rank((gathered * weights)[:RANKED])
    return right, {"feature_std": variance.sqrt().mean() * math.sqrt(width), "effective_rank": rank}


def effective_rank(x: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values of float (n, d), normalised to sum 1 (Garrido et al. 2023)."""
    x = x.double().nan_to_num(0.0, 0.0, 0.0)
    squares = torch.linalg.eigvalsh(x @ x.T if len(x) < x.shape[1] else x.T @ x)
    values = squares.clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp().float()
