"""The results of `transfer`: a table for the terminal, a heat map, and a page with both."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cluster.reports.html import environment, png_uri
from pipeline.storage import absolute, join, write_atomic
from trainers.running.measures import MEASURES

PNG, HTML = "transfer.png", "transfer.html"

_MOST_POINTS = 20.0  # of a difference; larger ones have the same colour


def transfer_table(found: Mapping[str, Any]) -> Table:
    """A row for each data set, problem, protocol and fraction of the labels, a column a start; the best of a row is bold."""
    starts = list(found["starts"])
    table = Table(
        title="transfer, %",
        caption="±: of one seed the standard error of its test images, of several that of their mean over seeds",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("data", "protocol", "labels"):
        table.add_column(heading)
    for start in starts:
        table.add_column(start, justify="right")
    for row in found["table"]:
        best = max(one["mean"] for one in row["starts"].values())
        shown = [_words(row["starts"].get(start), best) for start in starts]
        table.add_row(_data(row), row["protocol"], _labels(row), *shown)
    return table


def failed_cells(found: Mapping[str, Any]) -> list[str]:
    """A line for each cell that failed, with its reason."""
    return [
        f"failed: {cell['start']} on {cell['dataset']} ({cell['problem']}, {100 * cell['labels']:g} % of the labels, seed "
        f"{cell['seed']}): {cell['reason']}"
        for cell in found["cells"]
        if cell["status"] == "failed"
    ]


def write_transfer(found: Mapping[str, Any], name: str, out: str) -> dict[str, str]:
    """Write the heat map and the page into a folder; returns the URLs of all that is there, by name."""
    places = {file: join(absolute(out), file) for file in ("transfer.json", PNG, HTML)}
    picture = heat_map(found)
    starts = list(found["starts"])
    rows = [
        {"data": _data(row), "protocol": row["protocol"], "labels": _labels(row), "cells": [row["starts"].get(s) for s in starts]}
        for row in found["table"]
    ]
    page = environment().get_template("transfer.html")
    html = page.render(name=name, starts=starts, rows=rows, failed=failed_cells(found), picture=png_uri(picture), by=found["by"])
    for file, content in ((PNG, picture), (HTML, html.encode())):
        with write_atomic(places[file]) as target:
            target.write(content)
    return places


def heat_map(found: Mapping[str, Any]) -> bytes:
    """A PNG: a row a start, a column a row of the table; the number is the measure in per cent.

    The colour is its difference from the random start, in points, where there is one; else the measure itself.
    """
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure

    starts, table = list(found["starts"]), found["table"]
    values = np.full((len(starts), max(1, len(table))), np.nan)
    for across, row in enumerate(table):
        for start, one in row["starts"].items():
            values[starts.index(start), across] = 100 * one["mean"]
    random = [down for down, start in enumerate(starts) if found["starts"][start] == "random"]
    beside = bool(random) and not np.isnan(values[random[0]]).all()
    colours = values - values[random[0]] if beside else values
    how: dict[str, Any] = {"cmap": "RdBu", "vmin": -_MOST_POINTS, "vmax": _MOST_POINTS} if beside else {"cmap": "Blues"}
    file = io.BytesIO()
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(1.9 + 0.78 * values.shape[1] + 1.0, 1.5 + 0.42 * len(starts)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(colours, aspect="auto", **how)
        for (down, across), value in np.ndenumerate(values):
            if not np.isnan(value):
                dark = abs(colours[down, across]) > 0.7 * _MOST_POINTS if beside else value > np.nanmean(values)
                axes.text(across, down, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black")
        axes.set_yticks(range(len(starts)), starts)
        axes.set_xticks(range(len(table)), [_column(row) for row in table], rotation=40, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.9)
        bar.set_label("points beside random" if beside else "%")
        bar.outline.set_visible(False)
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def _words(one: Mapping[str, Any] | None, best: float) -> Text:
    if one is None:
        return Text("failed")
    spread = "" if one["standard_error"] is None else f" ± {100 * one['standard_error']:.1f}"
    words = f"{100 * one['mean']:.1f}{spread}"
    return Text(words, "bold" if one["mean"] == best else "")


def _data(row: Mapping[str, Any]) -> str:
    """The data set and, where it is no accuracy, what was measured."""
    measure = "" if row["measure"] == "accuracy" else f", {MEASURES[row['measure']]}"
    return f"{row['dataset']}{measure}"


def _labels(row: Mapping[str, Any]) -> str:
    return f"{row['images']:,} ({100 * row['labels']:g} %)"


def _column(row: Mapping[str, Any]) -> str:
    return f"{_data(row)}\n{row['protocol']}, {100 * row['labels']:g} %"
