"""The work of every contender: the same photos to the same uint8 crops, or pairs, of the same size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

TASKS = ("rotation", "jigsaw", "occlusion", "colorization")
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
"""Of the random resized crop, as in a recipe by default."""

Batch = dict[str, np.ndarray]
"""Columns of n rows in this process's memory: `image`, or for each task `<task>.input` and `<task>.label` or `<task>.mask`; or
`vector`, float32 (n, width); pixels are uint8, (n, h, w, c) or (n, c, h, w)."""


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Args:
        shards: local tars; a contender reads them again and again.
        size: side of the crop, pixels.
        tasks: what to make of each crop; none: the crop itself.
        center: take the largest centred square, unmirrored, so that the result can be checked.
        batch: samples of a batch.
        workers: processes, threads or actors that decode.
        options: further settings for contenders of this project, and what a network computes in.
        network: the network that makes a vector of each crop; empty for the crops or pairs themselves.
    """

    shards: tuple[str, ...]
    size: int
    tasks: tuple[str, ...] = ()
    center: bool = False
    batch: int = 64
    workers: int = 2
    options: tuple[tuple[str, Any], ...] = ()
    network: str = ""


def forever(shards: tuple[str, ...]) -> Iterator[str]:
    """The shards, over and over."""
    while True:
        yield from shards


def members(shard: str) -> Iterator[bytes]:
    """The photos of a shard."""
    import tarfile

    with tarfile.open(shard) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                file = tar.extractfile(member)
                assert file is not None
                yield file.read()
