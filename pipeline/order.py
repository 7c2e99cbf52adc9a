"""The order of training: which samples make up each global batch, as a function of counts, recipe and seed, on any cluster.

The shards of an epoch are permuted and laid end to end; the line is cut into equal lanes; a global batch takes the same number
of samples from each lane. Inside a lane, the samples of a window of a few steps are shuffled. A *unit* is what one group of lanes
contributes to one window: the piece of work that is read, rendered and sent as a whole, and that belongs to one rank. Nothing
here depends on how many ranks or actors there are; the place in a run is one integer, the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.draws import hash64, permutation
from pipeline.errors import UserError
from pipeline.recipe.schema import Order

_LEAST_LANES, _MOST_LANES = 16, 64
_UNIT_BYTES = 16 * 2**20
_LEAST_UNIT_ROWS, _MOST_UNIT_ROWS, _MOST_WINDOW = 64, 1024, 16


@dataclass(frozen=True)
class Geometry:
    """The sizes that shape an order: batch >= lanes >= groups, each dividing the one before, and a window in steps."""

    batch: int
    lanes: int
    groups: int
    window: int

    @classmethod
    def of(cls, spec: Order, batch: int, row_bytes: int) -> Geometry:
        """Fill in what the recipe leaves open, from the batch and the bytes of a rendered row alone.

        Raises:
            UserError: if the recipe's own numbers do not divide each other.
        """
        lanes = spec.lanes or _lanes(batch)
        groups = spec.groups or _divisor(lanes, 8)
        if batch % lanes:
            raise UserError(
                f"training.order.lanes {lanes} does not divide the batch of {batch}; take one of {_near(batch, lanes)}"
            )
        if lanes % groups:
            raise UserError(
                f"training.order.groups {groups} does not divide the {lanes} lanes; take one of {_near(lanes, groups)}"
            )
        unit_rows = min(_MOST_UNIT_ROWS, max(_LEAST_UNIT_ROWS, _UNIT_BYTES // row_bytes))
        window = spec.window or min(_MOST_WINDOW, max(1, unit_rows * groups // batch))
        return cls(batch, lanes, groups, window)

    def check_workers(self, workers: int) -> None:
        """Refuse a number of ranks that cannot share the groups evenly."""
        if self.groups % workers:
            fit = [w for w in range(1, self.groups + 1) if self.groups % w == 0]
            raise UserError(
                f"{workers} workers cannot share {self.groups} groups of lanes evenly; "
                f"take {', '.join(map(str, fit))} workers, or set training.order.groups to a multiple of {workers}"
            )


@dataclass(frozen=True)
class Rows:
    """Samples in training order: shard and row in the shard, int64 (r,) each; shard -1 stands for a place that stays empty."""

    shards: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


class Plan:
    """The order of one epoch.

    Args:
        counts: samples in each shard.
        geometry: lanes, groups and window.
        seed: the recipe's seed.
        epoch: number of the epoch, from 0.
        tail: what becomes of a last batch that is not full: `drop` leaves its samples out, `wrap` fills it from the epoch's
            start, `pad` fills it with empty places.
        shuffle: False keeps the corpus's own order along the line, for evaluation.
    """

    def __init__(
        self,
        counts: np.ndarray,
        geometry: Geometry,
        seed: int,
        epoch: int,
        tail: Literal["drop", "wrap", "pad"] = "drop",
        shuffle: bool = True,
    ) -> None:
        self.geometry, self._seed, self._epoch, self._tail, self._shuffle = geometry, seed, epoch, tail, shuffle
        counts = np.asarray(counts, np.int64)
        self.samples = int(counts.sum())
        self._shards = permutation(len(counts), "shards", seed, epoch) if shuffle else np.arange(len(counts))
        self._ends = np.cumsum(counts[self._shards])
        self._starts = self._ends - counts[self._shards]
        # Where the line begins changes too, or with few shards the lanes and the dropped tail would be the same in every epoch.
        self._shift = hash64("shift", seed, epoch) % self.samples if shuffle and self.samples else 0
        self.steps = self.samples // geometry.batch if tail == "drop" else -(-self.samples // geometry.batch)
        self.windows = -(-self.steps // geometry.window)
        self._per_lane = geometry.batch // geometry.lanes

    def steps_of(self, window: int) -> tuple[int, int]:
        """First step of a window, and the one after its last."""
        return window * self.geometry.window, min(self.steps, (window + 1) * self.geometry.window)

    def unit(self, window: int, group: int, skip: int = 0) -> Rows:
        """What a group of lanes contributes to a window, ordered by step, then lane; the first `skip` steps left out."""
        first, end = self.steps_of(window)
        per_group = self.geometry.lanes // self.geometry.groups
        lanes = range(group * per_group, (group + 1) * per_group)
        shape = (end - first, 1, self._per_lane)
        parts = []
        for lane in lanes:
            start = (lane * self.steps + first) * self._per_lane
            positions = np.arange(start, start + (end - first) * self._per_lane)
            if self._shuffle:
                positions = positions[permutation(len(positions), "window", self._seed, self._epoch, lane, window)]
            parts.append(positions.reshape(shape))
        return self._locate(np.concatenate(parts, axis=1)[skip:].ravel())

    def batch(self, step: int) -> Rows:
        """One global batch, groups end to end: the definition that every way of running must agree with."""
        window, skip = divmod(step, self.geometry.window)
        per_unit = self.geometry.batch // self.geometry.groups
        units = [self.unit(window, group, skip) for group in range(self.geometry.groups)]
        return Rows(*(np.concatenate([getattr(u, side)[:per_unit] for u in units]) for side in ("shards", "rows")))

    def _locate(self, positions: np.ndarray) -> Rows:
        empty = positions >= self.samples if self._tail == "pad" else np.zeros(len(positions), bool)
        on_line = (positions + self._shift) % max(self.samples, 1)
        at = np.searchsorted(self._ends, on_line, side="right")
        return Rows(np.where(empty, -1, self._shards[at]), np.where(empty, 0, on_line - self._starts[at]))


class Schedule:
    """All epochs of a run, as one sequence of steps and one of units.

    Args: as for `Plan`, with the number of epochs.

    Raises:
        UserError: if an epoch has not a single step.
    """

    def __init__(
        self,
        counts: np.ndarray,
        geometry: Geometry,
        seed: int,
        epochs: int,
        tail: Literal["drop", "wrap", "pad"] = "drop",
        shuffle: bool = True,
    ) -> None:
        self.counts, self.geometry, self.epochs = np.asarray(counts, np.int64), geometry, epochs
        self._seed, self._tail, self._shuffle = seed, tail, shuffle
        self._plans: dict[int, Plan] = {}  # the epoch at hand
        first = self._make(0)
        if first.samples == 0:
            raise UserError("the corpus holds no samples")
        if first.steps == 0:
            raise UserError(
                f"the corpus has {first.samples} samples, less than one batch of {geometry.batch}: "
                "lower training.batch, or set training.order.tail to wrap"
            )
        self.steps_per_epoch, self.windows_per_epoch = first.steps, first.windows
        self.steps = first.steps * epochs

    def plan(self, epoch: int) -> Plan:
        """The order of one epoch."""
        if epoch not in self._plans:
            self._plans = {epoch: self._make(epoch)}
        return self._plans[epoch]

    def _make(self, epoch: int) -> Plan:
        return Plan(self.counts, self.geometry, self._seed, epoch, self._tail, self._shuffle)

    def units(self, step: int = 0) -> int:
        """How many units there are from `step` to the end."""
        epoch, within = divmod(step, self.steps_per_epoch)
        windows = self.epochs * self.windows_per_epoch - epoch * self.windows_per_epoch - within // self.geometry.window
        return max(0, windows) * self.geometry.groups

    def unit(self, number: int, step: int = 0) -> tuple[int, Rows]:
        """Unit `number` counted from `step`: its epoch and its rows."""
        epoch, window, skip = self._window(number // self.geometry.groups, step)
        return epoch, self.plan(epoch).unit(window, number % self.geometry.groups, skip)

    def windows(self, step: int = 0) -> Iterator[range]:
        """The global steps of each window, from `step` to the end."""
        for number in range(self.units(step) // self.geometry.groups):
            epoch, window, skip = self._window(number, step)
            first, end = self.plan(epoch).steps_of(window)
            base = epoch * self.steps_per_epoch
            yield range(base + first + skip, base + end)

    def _window(self, number: int, step: int) -> tuple[int, int, int]:
        """Epoch, window within it, and steps to leave out, of the window `number` counted from the one that holds `step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        first, skip = divmod(within, self.geometry.window)
        ahead, window = divmod(first + number, self.windows_per_epoch)
        return epoch + ahead, window, skip if number == 0 else 0


def _lanes(batch: int) -> int:
    """As many lanes as mix well; where the batch has no such divisor, a lane a sample: a few lanes would hardly mix at all."""
    lanes = _divisor(batch, _MOST_LANES)
    return lanes if lanes >= _LEAST_LANES else batch


def _divisor(number: int, most: int) -> int:
    """The greatest divisor of `number` that is at most `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def _near(number: int, wanted: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return ", ".join(map(str, sorted(sorted(divisors, key=lambda d: abs(d - wanted))[:5])))
