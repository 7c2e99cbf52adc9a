"""Labelled images of a source, without Ray."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.rendering.units import UnitRenderer, UnitSource
from pipeline.streaming.batches import batches
from trainers.downstream.passes import Batch, usable


def images_of(source: UnitSource) -> Iterator[Batch]:
    """The batches of a source on one rank, without Ray."""
    render = UnitRenderer(source, 1)
    made = (render(source.read(number)) for number in range(source.schedule.units(source.step)))
    for _, columns in batches(source.schedule, source.step, 0, 1, made):
        yield usable(columns, torch.device("cpu"))
