"""The result of `bench` as a table and a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from cluster.reports.formatting import amount

if TYPE_CHECKING:
    from trainers.planning.bench import Bench

_HEADINGS = ("images", "busy s", "waiting s", "p50 ms", "p90 ms", "p99 ms", "CPU ms", "bytes")


def bench_tables(found: Bench) -> list[RenderableType]:
    """A table with a row for each stage, and the verdict; times, processor times and bytes are per image."""
    table = Table(
        title="stages",
        caption=f"could be made: {found.made:,.0f} img/s, arrived: {found.arrived:,.0f} img/s, "
        f"could be learned from: {found.learned:,.0f} img/s; first batch after {found.first:.1f} s",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("stage")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for stage in found.stages:
        p50, p90, p99 = stage.spread
        table.add_row(
            stage.name,
            f"{stage.images:,}",
            f"{stage.busy:.1f}",
            f"{stage.waiting:.1f}",
            *(f"{value:.2f}" for value in (p50, p90, p99, stage.cpu)),
            amount(stage.bytes, "B") if stage.bytes else "",
        )
    return [table, found.verdict]
