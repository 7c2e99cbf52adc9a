"""Deep InfoMax: match the vector of an image with the places of its own map, against places of other images' maps."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone, Output
from trainers.networks.inputs import Normaliser
from trainers.networks.precision import in_float32
from trainers.objectives.base import Objective
from trainers.objectives.views import MINUS, Compared, Shared, ViewObjective, parameters_of


class LocalObjective(ViewObjective):
    """Base class of objectives that compare vectors with the places of maps; a head for each brings them to one width."""

    needs: ClassVar[tuple[Output, ...]] = ("vector", "map")

    def make_heads(self, backbone: Backbone, hidden: int, width: int) -> None:
        """Build the heads of the vector and of the map's places."""
        self.of_vector = _Head(backbone.vector_width, hidden, width)
        self.of_map = _Head(backbone.map_width, hidden, width)

    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """Projected vector, then projected map places, of each of k views, float (n, k, 1 + h * w, width)."""
        given = batch[f"{name}.input"]
        found = backbone(pixels(given, self.norm))
        with in_float32(given.device):
            places = self.of_map(found.map.float().flatten(2).transpose(1, 2))
            both = torch.cat([self.of_vector(found.vector.float()).unsqueeze(1), places], 1)
        return both.unflatten(0, given.shape[:2])


class DimObjective(LocalObjective):
    """Local mutual information between an image's vector and its map (Hjelm et al. 2019, equation 8), from one view.

    It is estimated by InfoNCE or by the Jensen-Shannon divergence; negatives are the places of all other samples of all ranks.
    The paper's third estimator, Donsker-Varadhan, and its global and prior terms are left out. The metric is the share of samples
    whose vector is nearer to the mean of their own map's places than to that of any other map.
    """

    name: ClassVar[str] = "dim"

    class Parameters(Objective.Parameters):
        """See the fields."""

        estimator: Literal["infonce", "jsd"] = Field("infonce", description="How mutual information is estimated.")
        hidden: int = Field(512, ge=1, description="Width of the heads' hidden layer.")
        width: int = Field(256, ge=2, description="Width of the vectors in which vectors and places are compared.")

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        settings = self.Parameters(**parameters_of(task))
        self.estimator = settings.estimator
        self.make_heads(backbone, settings.hidden, settings.width)

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        vectors, places = features[:, 0, 0], features[:, 0, 1:]
        gathered = shared.rows.gather(places)
        estimate = local_nce if self.estimator == "infonce" else local_jsd
        losses = estimate(scores_of(vectors, gathered), shared)
        return Compared((losses * shared.weight).sum(), vectors, places.mean(1))


def scores_of(vectors: Tensor, places: Tensor) -> Tensor:
    """Scores, float (n, total, l): products of vectors (n, d) and places (total, l, d), divided by the root of d."""
    return torch.einsum("nd,mld->nml", vectors, places) / vectors.shape[1] ** 0.5


def local_nce(scores: Tensor, shared: Shared) -> Tensor:
    """Cross-entropy of a sample's place against all places of other samples, averaged over the sample's places, float (n,).

    Args:
        scores: scores of this rank's vectors with the places of all ranks' samples, float32 (n, total, places).
        shared: the samples of all ranks.
    """
    own, others = _own(scores, shared), _others(shared)
    against = scores.masked_fill(~others.unsqueeze(2), MINUS).flatten(1).logsumexp(1, keepdim=True)
    return (torch.logaddexp(own, against) - own).mean(1)


def local_jsd(scores: Tensor, shared: Shared) -> Tensor:
    """Negative Jensen-Shannon estimate of each sample, float (n,), without constants; arguments as in `local_nce`."""
    others = _others(shared).float()
    apart = (F.softplus(scores).mean(2) * others).sum(1) / others.sum(1).clamp(min=1)
    return apart + F.softplus(-_own(scores, shared)).mean(1)


def _own(scores: Tensor, shared: Shared) -> Tensor:
    """The scores of each sample's own places, (n, places)."""
    return scores.gather(1, shared.places().view(-1, 1, 1).expand(-1, 1, scores.shape[2])).squeeze(1)


def _others(shared: Shared) -> Tensor:
    """Which samples of all ranks are negatives of each of this rank's: other ones, of weight 1; bool (n, total)."""
    counts = (shared.weights > 0).expand(len(shared.weight), -1)
    return counts.scatter(1, shared.places().unsqueeze(1), value=False)


class _Head(nn.Module):
    """Projection head: a hidden layer, and a linear shortcut that is added to it."""

    def __init__(self, features: int, hidden: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width))
        self.shortcut, self.norm = nn.Linear(features, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Project float (..., features) to (..., width)."""
        out: Tensor = self.norm(self.layers(x) + self.shortcut(x))
        return out
