"""Compares runs: those that differ in their seed are put together, as a mean with its standard error."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.reports.formatting import unit_of
from cluster.reports.tables import downstream_rows
from pipeline.errors import UserError
from pipeline.storage import absolute, join
from trainers.running.measures import measure_words, measured_value
from trainers.running.runs import EVALUATED, FINETUNED, PRETRAINED, RECIPE, decisive, differences, read_json, shortened


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Args:
        mean: of their values.
        standard_error: of one run: that of its test images; of several: their standard deviation by the square root of their
            number. None where it is not known.
        values: one of each run.
    """

    mean: float
    standard_error: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], single: float | None) -> Estimate:
        """Make it of the runs' values; `single` is the standard error if there is one run only."""
        several = len(values) > 1
        return cls(
            statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if several else single, tuple(values)
        )

    def words(self, factor: float = 1.0, digits: int = 3, sign: str = "") -> str:
        """The mean and its standard error, both times a factor."""
        spread = "" if self.standard_error is None else f" ± {factor * self.standard_error:.{digits}f}"
        return f"{factor * self.mean:{sign}.{digits}f}{spread}"


@dataclass(frozen=True)
class PretextMetric:
    """A task's metric over runs; `measured` is its name, empty where earlier versions did not keep it."""

    measured: str
    metric: Estimate
    trivial: Estimate

    def words(self) -> tuple[str, str]:
        """The metric and the trivial answer's, for people."""
        factor, unit = unit_of(self.measured)
        first, second = (f"{estimate.words(factor, 1 if unit else 3)}{unit}" for estimate in (self.metric, self.trivial))
        return first, second


@dataclass(frozen=True)
class Comparison:
    """A group of runs with one recipe but for the name, and each with another seed.

    Args:
        names: of the runs.
        seeds: of the runs.
        differs: keys in which its recipe differs from that of the first group, with both values.
        downstream: rows, each with `test`, `protocol`, `labels`, and estimates `random`, `pretrained` and `gain` of accuracies,
            or of another `measure`, which is named then.
        pretext: each task's metric at the end, and the trivial answer's.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    differs: dict[str, list[Any]]
    downstream: list[dict[str, Any]]
    pretext: dict[str, PretextMetric]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def compare_runs(runs: Sequence[str]) -> list[Comparison]:
    """Read the results of runs and put them together.

    Args:
        runs: their folders, paths or URLs.

    Returns:
        The groups, in the order of their first runs.

    Raises:
        UserError: a folder holds no finished run, or is given twice.
    """
    places = [absolute(run).rstrip("/") for run in runs]
    if twice := {place for place in places if places.count(place) > 1}:
        raise UserError(f"{', '.join(sorted(twice))}: given twice")
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    times: Counter[tuple[str, int]] = Counter()
    for run in runs:
        found = _read(run)
        recipe, seed = json.dumps(found["decisive"], sort_keys=True), found["seed"]
        # Of one seed a second run tells nothing of the chance of seeds: it goes into a group of its own.
        groups.setdefault((recipe, times[recipe, seed]), []).append(found)
        times[recipe, seed] += 1
    first = next(iter(groups.values()))[0]["decisive"]
    return [
        Comparison(
            names=tuple(found["name"] for found in group),
            seeds=tuple(found["seed"] for found in group),
            differs={key: [was, now] for key, was, now in differences(first, group[0]["decisive"])},
            downstream=_downstream(found["rows"] for found in group),
            pretext=_pretext([found["tasks"] for found in group]),
        )
        for group in groups.values()
    ]


def comparison_tables(groups: Sequence[Comparison]) -> list[Table]:
    """Tables of accuracies (or mean IoUs), one for each test set, and of the pretext tasks; below, the keys that differ."""
    parts: list[Table] = []
    for test, measure in dict.fromkeys((row["test"], row.get("measure")) for group in groups for row in group.downstream):
        title = f"{measure_words({'measure': measure})} on {', '.join(test) or 'the test set'}, %"
        table = _table(title, "protocol", "labels", "random", "pretrained", "gain")
        for group in groups:
            for row in group.downstream:
                if (row["test"], row.get("measure")) == (test, measure):
                    shown = [row[key].words(100, 1, "+" * (key == "gain")) if key in row else "" for key in _ESTIMATES]
                    table.add_row(*_who(group), row["protocol"], f"{row['labels']:,}", *shown)
        table.caption = "±: of one run the standard error of its test images, of several that of their mean over seeds"
        parts.append(table)
    if any(group.pretext for group in groups):
        table = _table("pretext tasks", "task", "metric at the end", "trivial answer")
        for group in groups:
            for task, held in group.pretext.items():
                table.add_row(*_who(group), f"{task} ({held.measured})" if held.measured else task, *held.words())
        parts.append(table)
    for group in (group for group in groups[1:] if group.differs):
        table = Table(title=f"{_who(group)[0]} differs in", box=SIMPLE_HEAD, title_justify="left")
        for heading in ("key", _who(groups[0])[0], _who(group)[0]):
            table.add_column(heading)
        for key, values in group.differs.items():
            table.add_row(key, *map(shortened, values))
        parts.append(table)
    return parts


_ESTIMATES = ("random", "pretrained", "gain")


def _read(run: str) -> dict[str, Any]:
    url = absolute(run)
    recipe, pretrained = read_json(join(url, RECIPE)), read_json(join(url, PRETRAINED))
    if recipe is None or pretrained is None:
        raise UserError(f"{run}: no {RECIPE} and {PRETRAINED} there: give folders of finished runs, such as runs/photos")
    parts = [read_json(join(url, name)) or {} for name in (EVALUATED, FINETUNED)]
    kept = decisive(recipe, "finetune")
    return {
        "name": recipe["name"],
        "seed": recipe["seed"],
        "decisive": {key: value for key, value in kept.items() if key not in ("name", "seed")},
        "rows": [row for part in parts if part.get("pretraining") == pretrained["identity"] for row in part["downstream"]],
        "tasks": pretrained["tasks"],
    }


def _downstream(runs: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each test set, protocol and number of labels, over the runs that have it."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for rows in runs:
        for test in dict.fromkeys(_test_of(row) for row in rows):
            for row in downstream_rows(row for row in rows if _test_of(row) == test):
                found.setdefault((test, row["protocol"], row["labels"]), []).append(row)
    return [
        {"test": test[0], "protocol": protocol, "labels": labels, "runs": len(rows), **_measure(test[3]), **_estimates(rows)}
        for (test, protocol, labels), rows in found.items()
    ]


def _test_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get("test") or ()), row.get("classes"), row.get("tested"), row.get("measure")


def _measure(name: str | None) -> dict[str, str]:
    """The measure as part of a row: none for an accuracy."""
    return {} if name is None else {"measure": name}


def _estimates(rows: list[dict[str, Any]]) -> dict[str, Estimate]:
    estimates = {}
    for init in ("random", "pretrained"):
        held = [row[init] for row in rows if init in row]
        if held:
            estimates[init] = Estimate.of([measured_value(row) for row in held], held[0].get("standard_error"))
    both = [row for row in rows if "random" in row and "pretrained" in row]
    if both:
        errors = [both[0][init].get("standard_error") for init in ("random", "pretrained")]
        single = None if None in errors else math.hypot(*errors)
        gains = [measured_value(row["pretrained"]) - measured_value(row["random"]) for row in both]
        estimates["gain"] = Estimate.of(gains, single)
    return estimates


def _pretext(runs: list[dict[str, Any]]) -> dict[str, PretextMetric]:
    def of(name: str, key: str) -> Estimate:
        return Estimate.of([tasks[name][key] for tasks in runs], None)

    return {name: PretextMetric(runs[0][name].get("measured", ""), of(name, "metric"), of(name, "trivial")) for name in runs[0]}


def _who(group: Comparison) -> tuple[str, str]:
    """The first run's name and, of several, how many there are; and the seeds."""
    several = f" and {len(group.names) - 1} more" if len(group.names) > 1 else ""
    return f"{group.names[0]}{several}", ", ".join(map(str, group.seeds))


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for heading in ("runs", "seeds", headings[0]):
        table.add_column(heading)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table
