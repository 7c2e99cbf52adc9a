"""The table of the comparison, and what it says."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.methods.rows import ROWS

Record = dict[str, Any]
_MEASURES = ("knn vector", "linear vector", "knn layer3", "linear layer3")
_VIEWS = ("simclr", "moco", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino", "dim", "amdim")


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of values; one value has none."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def markdown(setting: dict[str, Any], records: list[Record], rates: dict[str, float]) -> str:
    """Everything as Markdown; `rates` are images a CPU second, by row."""
    about = ", ".join(f"{name} {value}" for name, value in setting.items())
    head = ("row", "seeds", "images seen", "images/CPU s", "CPU minutes", *(f"{measure}, %" for measure in _MEASURES))
    lines = [about, "", f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    found = {row: [record for record in records if record["row"] == row] for row in ROWS}
    for row, runs in found.items():
        if not runs:
            continue
        cells = [
            row,
            str(len(runs)),
            f"{statistics.mean(run['images'] for run in runs):,.0f}",
            f"{rates[row]:,.0f}" if row in rates else "",
            f"{statistics.mean(run['cpu'] for run in runs) / 60:.1f}",
            *(_percent(spread([run["accuracies"][measure] for run in runs])) for measure in _MEASURES),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    said = [*_beside_lightly(found, rates), *_best_of_views(found)]
    curves = [
        f"- {run['row']}, seed {run['seed']}: " + ", ".join(f"{images:,}: {100 * value:.1f}" for images, value in run["curve"])
        for run in records
        if run["curve"]
    ]
    return "\n".join([*lines, "", *said, *(["", "kNN along the training, by images seen:", "", *curves] if curves else [])])


def _beside_lightly(found: dict[str, list[Record]], rates: dict[str, float]) -> list[str]:
    lines = []
    for row, runs in found.items():
        ours = found.get(ROWS[row].repeats or "", [])
        if not runs or not ours:
            continue
        (mine, a), (theirs, b) = (spread([run["accuracies"]["knn vector"] for run in each]) for each in (ours, runs))
        if a is None or b is None:
            verdict = "one seed, so no judgement"
        else:
            verdict = f"{'no worse' if mine >= theirs - max(a, b) else 'WORSE'} by more than a standard deviation"
        lines.append(
            f"- {ROWS[row].repeats}, ours and lightly's: kNN {_percent((mine, a))}, {_percent((theirs, b))} at equal images "
            f"seen, {verdict}; images a CPU second {rates[ROWS[row].repeats or row] / rates[row]:.2f} times lightly's"
        )
    return lines


def _best_of_views(found: dict[str, list[Record]]) -> list[str]:
    lines = []
    for measure in _MEASURES:
        means = {row: spread([run["accuracies"][measure] for run in runs]) for row, runs in found.items() if runs}
        views = {row: means[row] for row in _VIEWS if row in means}
        if not views or "rotation" not in means:
            continue
        best = max(views, key=lambda row: views[row][0])
        lines.append(
            f"- {measure}: rotation {_percent(means['rotation'])}, the best view method, {best}, {_percent(views[best])}, at "
            "equal processor time"
        )
    return lines


def _percent(value: tuple[float, float | None]) -> str:
    mean, deviation = value
    return f"{100 * mean:.1f}" if deviation is None else f"{100 * mean:.1f} ± {100 * deviation:.1f}"
