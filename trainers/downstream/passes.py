"""Passes over labelled images on every rank: the usable ones on the rank's device, and a table of the quarantined ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.rendering.quarantine import Quarantine
from pipeline.rendering.renderer import Columns
from pipeline.rendering.units import UnitSource
from pipeline.targets import TARGET_COLUMNS
from pipeline.targets.classes import NO_LABEL
from trainers.learning.rank_stream import RankStream
from trainers.learning.ranks import gathered
from trainers.networks.inputs import to_device

Rows = list[dict[str, str]]
"""Quarantined samples: shard, key and reason of each."""


@dataclass(frozen=True)
class Batch:
    """The usable samples of a rank's share of a step; there may be none.

    Args:
        ids: uint64 (n,), on the host.
        labels: int64 (n,), on the host.
        image: uint8 (n, h, w, 3), on the rank's device.
        targets: on the host, those of `pipeline.targets.TARGET_COLUMNS` that the samples have.
    """

    ids: np.ndarray
    labels: np.ndarray
    image: Tensor
    targets: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Pass:
    """One of the passes of `passes`: all ranks iterate over it, and see the same number of batches.

    Args:
        source: images with targets; samples of weight 0 are left out, whether they cannot be decoded or have no good target.
        arriving: the columns of this pass's batches and of those after it.
    """

    source: UnitSource
    arriving: Iterator[Columns]
    _failures: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Batch]:
        import ray.train.torch

        device = ray.train.torch.get_device()
        for columns in islice(self.arriving, self.source.schedule.steps - self.source.step):
            self._failures += [text for text in columns["failure"] if text]
            yield usable(columns, device)

    def quarantined(self, what: str) -> Rows:
        """The samples that all ranks left out; to be called after the pass.

        Args:
            what: the recipe's key of the shards.

        Raises:
            BudgetExceeded: more than `failures.budget` allows.
            UserError: no image can be used.
        """
        import ray.train

        total = self.source.corpus.samples
        quarantine = Quarantine(self.source.recipe.failures.budget, total)
        quarantine.add(total, gathered(self._failures, ray.train.get_context().get_world_size()))
        return some_left(quarantine.rows(), total, what)


def passes(*sources: UnitSource) -> list[Pass]:
    """A pass over each of the sources, on every rank of a Ray Train run; the same data actors render all of them.

    The passes are made one after the other, each to its end.
    """
    import ray.train

    context = ray.train.get_context()
    arriving = (columns for _, columns in RankStream(sources, context.get_world_rank(), context.get_world_size()))
    return [Pass(source, arriving) for source in sources]


def usable(columns: dict[str, Any], device: torch.device) -> Batch:
    """The samples of weight 1 of a batch's columns, whose pixels may be on a device already."""
    kept = np.flatnonzero(columns["weight"])
    image = to_device({"image": columns["image"]}, device)["image"]
    if len(kept) < len(image):
        image = image[torch.from_numpy(kept).to(device)]
    targets = {name: columns[name][kept] for name in TARGET_COLUMNS if name in columns}
    return Batch(columns["id"][kept], columns["class"][kept], image, targets)


def left_out(quarantine: Rows) -> dict[str, dict[str, int]]:
    """How many images of each `set` were left out because they have no label, and for any other reason."""
    found = {side: {"unusable": 0, "unlabelled": 0} for side in ("train", "test")}
    for row in quarantine:
        found[row["set"]]["unlabelled" if row["reason"] == NO_LABEL else "unusable"] += 1
    return found


def some_left(quarantined: Rows, total: int, what: str) -> Rows:
    """Return the quarantined rows unless they are all of the `total` images.

    Raises:
        UserError: no image can be used.
    """
    if len(quarantined) < total:
        return quarantined
    first = "; the first, {shard} {key}: {reason}".format(**quarantined[0]) if quarantined else ""
    raise UserError(f"{what}: none of its {total} images can be used{first}; `pseudolabel inspect --deep` lists them all")
