"""The Prometheus series of a run, exported through Ray: what is rendered, where the time goes, and how far the run is.

Ray's agent on each node serves them, with the prefix `ray_` (counters end in `_total`). `cluster/deploy/dashboards/` plots them
and has alerts on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.rendering.quarantine import failure_reason, share_of_budget
from pipeline.storage import bytes_read

if TYPE_CHECKING:
    from pipeline.rendering.renderer import Columns

PREFIX = "pseudolabel_"
STAGE_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Boundaries of the histogram of a stage's time for one piece of work."""

_MOST_REASONS = 20
_OTHER = "other"
_NUMBERS = re.compile(r"\d[\dx.]*")


class _Series:
    """A series with some of its labels filled in."""

    def __init__(self, kind: str, name: str, about: str, tags: dict[str, str], more: tuple[str, ...]) -> None:
        self._metric, self._tags = _metric(kind, name, about, (*tags, *more)), tags

    def inc(self, value: float, **tags: str) -> None:
        """Add to a counter."""
        self._metric.inc(value, {**self._tags, **tags})

    def set(self, value: float, **tags: str) -> None:
        """Set a gauge."""
        self._metric.set(value, {**self._tags, **tags})

    def observe(self, value: float, **tags: str) -> None:
        """Add to a histogram."""
        self._metric.observe(value, {**self._tags, **tags})


@cache
def _metric(kind: str, name: str, about: str, keys: tuple[str, ...]) -> Any:
    """Ray's metric of this name, made once a process and kept: Ray does not export one that is made a second time."""
    from ray.util import metrics

    more = {"boundaries": list(STAGE_SECONDS)} if kind == "Histogram" else {}
    return getattr(metrics, kind)(PREFIX + name, about, tag_keys=keys, **more)


class Meter:
    """The counters of one rendering process, which add to the sums over the cluster.

    Args:
        run: the recipe's name.
        work: `render` or `training`.
    """

    def __init__(self, run: str, work: str) -> None:
        tags = {"run": run, "work": work}

        def counter(name: str, about: str, *more: str) -> _Series:
            return _Series("Counter", name, about, tags, more)

        self._samples = counter("samples", "Samples read, good and bad, counted once for each drawing.")
        self._pairs = counter("pairs", "Pairs made, over all tasks.")
        self._bad = counter("quarantined", "Samples that cannot be used, by reason, counted once for each drawing.", "reason")
        self._bytes = counter("bytes", "Bytes read from storage, and written to it.", "direction")
        self._stage = _Series("Histogram", "stage_seconds", "Time of a stage for one piece of work.", tags, ("stage",))
        self._reasons: set[str] = set()
        self._read = bytes_read()

    def rendered(self, samples: int, pairs: int, reasons: Iterable[str], seconds: Mapping[str, float]) -> None:
        """Count a piece of work.

        Args:
            samples: samples in it, good and bad.
            pairs: pairs made of them.
            reasons: why the bad ones are bad.
            seconds: time of each stage, of the whole piece.
        """
        if samples:  # a counter refuses zero
            self._samples.inc(samples)
        if pairs:
            self._pairs.inc(pairs)
        for reason in reasons:
            self._bad.inc(1, reason=self._kind(reason))
        for stage, took in seconds.items():
            self._stage.observe(took, stage=stage)
        self.traffic()

    def traffic(self) -> None:
        """Count the bytes that this process has read since the last call; `rendered` calls this, too."""
        before, self._read = self._read, bytes_read()
        if self._read > before:
            self._bytes.inc(self._read - before, direction="read")

    def unit(self, columns: Columns, tasks: int) -> Columns:
        """Count a unit of training, see `pipeline.rendering.units.UnitRenderer`, and return it."""
        reasons = [failure_reason(text) for text in columns["failure"] if text]
        good = int((columns["weight"] > 0).sum())
        totals = columns["seconds"].sum(axis=0, dtype=np.float64)
        self.rendered(good + len(reasons), good * tasks, reasons, dict(zip(("read", "check", "render"), totals.tolist())))
        return columns

    def wrote(self, count: int) -> None:
        """Count bytes that were written."""
        if count:
            self._bytes.inc(count, direction="written")

    def _kind(self, reason: str) -> str:
        kind = reason_kind(reason)
        if kind not in self._reasons and len(self._reasons) >= _MOST_REASONS:
            return _OTHER
        self._reasons.add(kind)
        return kind


def reason_kind(reason: str) -> str:
    """A reason without the details of one sample, so that few enough values remain for a label of a series."""
    return _NUMBERS.sub("N", re.split(r"[(:;,]", reason)[0]).strip()[:60] or _OTHER


class Gauges:
    """The gauges of how far a run is; the process that started it sets them, and they vanish when that ends.

    Args:
        run: the recipe's name.
        stage: `render`, `pretrain`, ...
        budget: the recipe's `failures.budget`.
    """

    def __init__(self, run: str, stage: str, budget: int | float) -> None:
        tags = {"run": run, "stage": stage}

        def gauge(name: str, about: str, *more: str) -> _Series:
            return _Series("Gauge", name, about, tags, more)

        self._budget = budget
        self._progress = gauge("progress", "How much of the run is done, from 0 to 1.")
        self._used = gauge("budget_used", "Quarantined samples as a share of failures.budget; above 1 the run stops.")
        self._shards = gauge("shards", "Shards of a render that are done, failed and to do.", "state")
        self._rate = gauge("samples_per_second", "Samples trained on a second, over all workers.")
        self._wait = gauge("wait_share", "Share of the time that training waits for data.")
        self._loss = gauge("loss", "Loss of each task.", "task")
        self._metric = gauge("metric", "Metric of each task.", "task")

    def render(self, done: int, failed: int, shards: int, seen: int, bad: int) -> None:
        """Set how far a render is: shards done, failed and in all, samples seen by this run, and how many of them are bad."""
        self._progress.set((done + failed) / max(shards, 1))
        for state, count in {"done": done, "failed": failed, "to do": shards - done - failed}.items():
            self._shards.set(count, state=state)
        self._used.set(share_of_budget(self._budget, bad, seen))

    def training(self, record: Mapping[str, Any], batch: int) -> None:
        """Set the values of a log line of training, see `trainers.running.run_log.Record`; `batch` is the global batch."""
        self._progress.set(record["step"] / record["steps"])
        self._rate.set(record["samples_per_second"])
        self._wait.set(record["wait_share"])
        epoch_steps = record["step"] / record["epoch"]
        self._used.set(share_of_budget(self._budget, record["quarantined"], round(min(record["step"], epoch_steps) * batch)))
        for task, values in record["tasks"].items():
            self._loss.set(values["loss"], task=task)
            self._metric.set(values["metric"], task=task)
