"""The table, heat map and page of a transfer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from cluster.reports.transfer import failed_cells, heat_map, transfer_table, write_transfer

NAMES = {"dataset": "pets & <co>", "problem": "classification", "seed": 0}


def found(**starts: float) -> dict[str, Any]:
    """A result of two fractions of the labels, of which the second has no cell of the last start."""
    table = [
        {
            **NAMES, "protocol": "finetune", "labels": labels, "images": round(1000 * labels), "measure": "accuracy",
            "starts": {s: {"mean": v, "standard_error": 0.01, "values": [v]} for s, v in list(starts.items())[: len(starts) - i]},
        }
        for i, labels in enumerate((0.01, 1.0))
    ]  # fmt: skip
    last = list(starts)[-1]
    cells = [{**NAMES, "labels": 1.0, "start": last, "status": "failed", "reason": "no such shard"}]
    kinds = {start: "random" if start == "random" else "run" for start in starts}
    return {"by": "finetune", "starts": kinds, "cells": cells, "table": table}


def words(result: dict[str, Any]) -> str:
    console = Console(width=130, file=io.StringIO())
    console.print(transfer_table(result))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_has_a_column_a_start_and_names_what_failed() -> None:
    result = found(random=0.4, rotation=0.55)
    text = words(result)
    for shown in ("rotation", "random", "10 (1 %)", "1,000 (100 %)", "55.0 ± 1.0", "40.0 ± 1.0", "failed"):
        assert shown in text
    assert failed_cells(result) == [
        "failed: rotation on pets & <co> (classification, 100 % of the labels, seed 0): no such shard"
    ]


def _colour(picture: bytes) -> np.ndarray:
    """The mean colour of the heat map's upper half."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(float)
    return pixels[: len(pixels) // 4, pixels.shape[1] // 4 : pixels.shape[1] // 2].mean((0, 1))


def test_what_is_better_than_random_is_blue_and_what_is_worse_is_red() -> None:
    better, worse = _colour(heat_map(found(a=0.6, random=0.4))), _colour(heat_map(found(a=0.2, random=0.4)))
    assert better[2] - better[0] > 20
    assert worse[0] - worse[2] > 20


def test_without_a_random_start_or_a_cell_there_is_a_heat_map_all_the_same() -> None:
    for result in (found(a=0.6, b=0.4), {**found(a=0.6), "table": []}):
        assert min(Image.open(io.BytesIO(heat_map(result))).size) > 100


def test_the_page_is_one_small_file(tmp_path: Path) -> None:
    places = write_transfer(found(random=0.4, rotation=0.55), "photos", str(tmp_path))
    page = Path(places["transfer.html"]).read_text()
    assert "pets &amp; &lt;co&gt;" in page
    assert "55.0 ± 1.0" in page
    assert "no such shard" in page
    assert "data:image/png" in page
    assert len(page) < 100_000
    assert Path(places["transfer.png"]).stat().st_size < 60_000
