"""The order of training: which samples make up each global batch, as a function of counts, recipe and seed, on any cluster.

The shards of an epoch are permuted and joined to one line; the line is cut into lanes of equal length; a global batch takes the
same number of samples from each lane. A window is a few consecutive steps, and inside a lane the samples of a window are
shuffled. The lanes are divided into groups. A *unit* is the samples of one group of lanes in one window: it is read, rendered
and sent as a whole, and belongs to one rank. Which samples a batch holds does not depend on the number of groups, ranks or
actors; the position in a run is one integer, the step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.draws import hash64, permutation
from pipeline.errors import UserError
from pipeline.ordering.mixture import Portion, apportion, deal
from pipeline.recipe.training import OrderSection

_LEAST_LANES, _MOST_LANES = 16, 64
_UNIT_BYTES, _SENT_BYTES = 16 * 2**20, 40 * 2**20
_LEAST_UNIT_ROWS, _MOST_UNIT_ROWS, _MOST_WINDOW = 64, 1024, 16
_CACHED_LINES = 64

MOST_UNIT_BYTES = 3 * 2**29
"""The most bytes that may be sent of a unit: it is one block of Ray's object store, held by the actor and by the trainer."""


@dataclass(frozen=True)
class Geometry:
    """The sizes that define an order: samples of a global batch, lanes, groups of lanes, and steps of a window.

    A batch takes the same number of samples from each lane. A group is consecutive lanes; where the number of groups does not
    divide that of the lanes, the first groups have one lane more.
    """

    batch: int
    lanes: int
    groups: int
    window: int

    @classmethod
    def of(cls, spec: OrderSection, batch: int, row_bytes: int, sent_bytes: int | None = None) -> Geometry:
        """Derive the sizes that the recipe leaves open.

        Lanes and window, on which the order depends, follow from the batch and the bytes of a rendered row alone. Groups do not
        change the order, so there are as few as make units of a good size: Ray has a cost for each unit.

        Args:
            spec: the recipe's section.
            batch: the global batch.
            row_bytes: bytes of a rendered row.
            sent_bytes: bytes that an actor sends for a row, if it does not send the rendered row.

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
        if not spec.groups:
            sent = window * batch * (sent_bytes or row_bytes)
            groups = next((n for n in range(2, groups) if lanes % n == 0 and sent <= n * _SENT_BYTES), groups)
            groups = next((n for n in range(groups, lanes) if lanes % n == 0 and sent <= n * MOST_UNIT_BYTES), lanes)
        return cls(batch, lanes, groups, window)

    def check_workers(self, workers: int) -> None:
        """Raise UserError where there are more ranks than lanes."""
        if workers > self.lanes:
            raise UserError(
                f"{workers} workers cannot share {self.lanes} lanes: take at most {self.lanes} workers, "
                "or raise training.batch or training.order.lanes"
            )

    def check_unit(self, sent_bytes: float) -> None:
        """Raise UserError where a unit is too large for one block, by the bytes that an actor sends for a row."""
        rows = self.window * self.unit_rows
        if rows * sent_bytes > MOST_UNIT_BYTES:
            raise UserError(
                f"a unit of the order is {rows} samples ({self.unit_rows} of a batch of {self.batch} x training.order.window "
                f"{self.window}) of {sent_bytes / 2**20:,.1f} MiB, {rows * sent_bytes / 2**30:,.1f} GiB together, and may be "
                f"{MOST_UNIT_BYTES / 2**30:g} GiB: lower training.order.window, raise training.order.groups (now {self.groups}, "
                f"at most the {self.lanes} lanes), or lower training.batch"
            )

    def shared_by(self, workers: int) -> Geometry:
        """The same order, its groups rounded up to a multiple of `workers`, or down where the lanes are too few for that."""
        self.check_workers(workers)
        groups = -(-self.groups // workers) * workers
        return replace(self, groups=groups if groups <= self.lanes else self.lanes // workers * workers)

    @property
    def per_lane(self) -> int:
        """Samples of a batch from each lane."""
        return self.batch // self.lanes

    @property
    def unit_rows(self) -> int:
        """Rows of a unit for each step: those of the largest group, since units of equal size reach the ranks in turn."""
        return -(-self.lanes // self.groups) * self.per_lane

    def lanes_of(self, group: int) -> range:
        """The lanes of a group."""
        each, more = divmod(self.lanes, self.groups)
        first = group * each + min(group, more)
        return range(first, first + each + (group < more))

    def rows_of(self, group: int) -> int:
        """How many rows of a group's unit belong to each step; the others, at its end, are empty places."""
        return len(self.lanes_of(group)) * self.per_lane


@dataclass(frozen=True)
class UnitRows:
    """Samples in training order.

    Args:
        shards: int64 (r,); -1 stands for a place that stays empty.
        rows: int64 (r,): row in the shard.
        again: int64 (r,): how many times the sample came before in the epoch, in a mixture of corpora; else 0.
    """

    shards: np.ndarray
    rows: np.ndarray
    again: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, places: slice) -> UnitRows:
        """The samples at some places."""
        return UnitRows(self.shards[places], self.rows[places], self.again[places])


class _Line:
    """One pass over a corpus: its shards joined in a pseudo-random order, from a pseudo-random start; `key` seeds both.

    Without the random start, few shards would give the same lanes and the same dropped tail in every epoch.
    """

    def __init__(self, counts: np.ndarray, first: int, shuffle: bool, *key: int | str) -> None:
        self.samples = int(counts.sum())
        self._shards = permutation(len(counts), "shards", *key) if shuffle else np.arange(len(counts))
        self._ends = np.cumsum(counts[self._shards])
        self._starts = self._ends - counts[self._shards]
        self._shift = hash64("shift", *key) % self.samples if shuffle and self.samples else 0
        self._first = first

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and row of positions on the line, which wraps around after its last sample."""
        on_line = (positions + self._shift) % max(self.samples, 1)
        at = np.searchsorted(self._ends, on_line, side="right")
        return self._first + self._shards[at], on_line - self._starts[at]


class EpochOrder:
    """The order of one epoch.

    An epoch of a mixture has as many samples as its corpora together, divided among them by weight. A corpus that has fewer
    samples than its part of the epoch is passed over several times; of one that has more, the epoch takes only some, and the
    next epoch continues with the others.

    Args:
        counts: samples in each shard.
        geometry: lanes, groups and window.
        seed: the recipe's seed.
        epoch: number of the epoch, from 0.
        tail: what becomes of a last batch that is not full: `drop` leaves its samples out, `wrap` fills it from the epoch's
            start (in a mixture, with the samples that come next), `pad` fills it with empty places.
        shuffle: False keeps the corpus's own order along the line, for evaluation.
        portions: the corpora of a mixture; none for a single corpus.
    """

    def __init__(
        self,
        counts: np.ndarray,
        geometry: Geometry,
        seed: int,
        epoch: int,
        tail: Literal["drop", "wrap", "pad"] = "drop",
        shuffle: bool = True,
        portions: tuple[Portion, ...] = (),
    ) -> None:
        self.geometry, self._seed, self._epoch, self._shuffle, self._portions = geometry, seed, epoch, shuffle, portions
        self._counts = np.asarray(counts, np.int64)
        self.samples = int(self._counts.sum())
        self.steps = self.samples // geometry.batch if tail == "drop" else -(-self.samples // geometry.batch)
        self.windows = -(-self.steps // geometry.window)
        self._filled = self.samples if tail == "pad" else self.steps * geometry.batch
        self._lines: dict[tuple[int, int], _Line] = {}
        self._firsts = np.cumsum([0, *(portion.shards for portion in portions)])
        self.quotas = apportion(self._filled, [portion.weight for portion in portions]) if portions else np.zeros(0, np.int64)
        """int64 (corpora,): how many samples of the epoch each corpus of a mixture gives."""

    def steps_of(self, window: int) -> tuple[int, int]:
        """First step of a window, and the one after its last."""
        return window * self.geometry.window, min(self.steps, (window + 1) * self.geometry.window)

    def unit(self, window: int, group: int, skip: int = 0) -> UnitRows:
        """The samples of a group of lanes in a window, ordered by step, then lane, without the first `skip` steps."""
        first, end = self.steps_of(window)
        per_lane = self.geometry.per_lane
        in_lane = self.steps * per_lane
        places = np.full((end - first, self.geometry.unit_rows), -1, np.int64)
        for i, lane in enumerate(self.geometry.lanes_of(group)):
            within = np.arange(first * per_lane, end * per_lane)
            if self._portions:  # a start of its own: the lanes must not all be at the same corpus at the same step
                within = (within + hash64("phase", self._seed, self._epoch, lane) % in_lane) % in_lane
            positions = lane * in_lane + within
            if self._shuffle:
                positions = positions[permutation(len(positions), "window", self._seed, self._epoch, lane, window)]
            places[:, i * per_lane : (i + 1) * per_lane] = positions.reshape(-1, per_lane)
        return self._locate(places[skip:].ravel())

    def batch(self, step: int) -> UnitRows:
        """One global batch, one group after the other. It defines the order: every way of running must give the same batches."""
        window, skip = divmod(step, self.geometry.window)
        groups = range(self.geometry.groups)
        units = [(self.unit(window, group, skip), self.geometry.rows_of(group)) for group in groups]
        return UnitRows(*(np.concatenate([getattr(u, name)[:rows] for u, rows in units]) for name in ("shards", "rows", "again")))

    def _locate(self, positions: np.ndarray) -> UnitRows:
        """Shard and row of places in the epoch; places below 0, and those after the last sample, are empty."""
        found = UnitRows(*(np.full(len(positions), fill, np.int64) for fill in (-1, 0, 0)))
        filled = np.flatnonzero((positions >= 0) & (positions < self._filled))
        if self._portions:
            corpus, index = deal(self.quotas, positions[filled])
        else:
            corpus, index = np.zeros(len(filled), np.int64), positions[filled]
        for i in np.unique(corpus):
            here = np.flatnonzero(corpus == i)
            number, offset, again = self._passes(int(i), index[here])
            for each in np.unique(number):
                on = np.flatnonzero(number == each)
                places = filled[here[on]]
                found.shards[places], found.rows[places] = self._line(int(i), int(each)).at(offset[on])
                found.again[places] = again[on]
        return found

    def _passes(self, i: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For samples of corpus `i` in this epoch: number of the pass, place in it, and passes in this epoch before it."""
        if not self._portions:
            return np.full(len(index), self._epoch), index, np.zeros(len(index), np.int64)
        size = int(self._counts[self._firsts[i] : self._firsts[i + 1]].sum())
        begun = self._epoch * int(self.quotas[i])
        number, offset = np.divmod(begun + index, size)
        return number, offset, number - begun // size

    def _line(self, i: int, number: int) -> _Line:
        if (i, number) not in self._lines:
            if len(self._lines) >= _CACHED_LINES:
                self._lines.clear()
            if self._portions:
                shards = slice(self._firsts[i], self._firsts[i + 1])
                line = _Line(self._counts[shards], shards.start, self._shuffle, self._seed, number, self._portions[i].name)
            else:
                line = _Line(self._counts, 0, self._shuffle, self._seed, number)
            self._lines[i, number] = line
        return self._lines[i, number]


class Schedule:
    """All epochs of a run, as one sequence of steps and one of units.

    Args: as for `EpochOrder`, with the number of epochs.

    Raises:
        UserError: if an epoch has not a single step, or a corpus of a mixture not a single sample.
    """

    def __init__(
        self,
        counts: np.ndarray,
        geometry: Geometry,
        seed: int,
        epochs: int,
        tail: Literal["drop", "wrap", "pad"] = "drop",
        shuffle: bool = True,
        portions: tuple[Portion, ...] = (),
    ) -> None:
        self.counts, self.geometry, self.epochs, self.portions = np.asarray(counts, np.int64), geometry, epochs, portions
        self._seed, self._tail, self._shuffle = seed, tail, shuffle
        self._plans: dict[int, EpochOrder] = {}  # the current epoch
        first = self._make(0)
        if first.samples == 0:
            raise UserError("the corpus holds no samples")
        for portion, own in zip(portions, np.split(self.counts, np.cumsum([p.shards for p in portions]))):
            if own.sum() == 0:
                raise UserError(f"corpus.mix.{portion.name} holds no samples: leave it out")
        if first.steps == 0:
            raise UserError(
                f"the corpus has {first.samples} samples, less than one batch of {geometry.batch}: "
                "lower training.batch, or set training.order.tail to wrap"
            )
        self.steps_per_epoch, self.windows_per_epoch = first.steps, first.windows
        self.steps = first.steps * epochs

    def plan(self, epoch: int) -> EpochOrder:
        """The order of one epoch."""
        if epoch not in self._plans:
            self._plans = {epoch: self._make(epoch)}
        return self._plans[epoch]

    def _make(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.counts, self.geometry, self._seed, epoch, self._tail, self._shuffle, self.portions)

    def shared_by(self, workers: int) -> Schedule:
        """The same steps and batches, in a number of units that the ranks divide, see `Geometry.shared_by`."""
        shared = copy.copy(self)
        shared.geometry, shared._plans = self.geometry.shared_by(workers), {}
        return shared

    def units(self, step: int = 0) -> int:
        """How many units there are from `step` to the end."""
        epoch, within = divmod(step, self.steps_per_epoch)
        windows = self.epochs * self.windows_per_epoch - epoch * self.windows_per_epoch - within // self.geometry.window
        return max(0, windows) * self.geometry.groups

    def unit(self, number: int, step: int = 0) -> tuple[int, UnitRows]:
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
    """The greatest divisor of the batch up to `_MOST_LANES`; the batch itself where that is too small: few lanes hardly mix."""
    lanes = _divisor(batch, _MOST_LANES)
    return lanes if lanes >= _LEAST_LANES else batch


def _divisor(number: int, most: int) -> int:
    """The greatest divisor of `number` that is at most `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def _near(number: int, wanted: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return ", ".join(map(str, sorted(sorted(divisors, key=lambda d: abs(d - wanted))[:5])))
