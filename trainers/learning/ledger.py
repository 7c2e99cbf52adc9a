"""The ledger of a run: which samples each step trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


class Ledger:
    """Writes one rank's ledger: for each step a line of JSON with `step` and the `ids` of its samples in order (see
    `pipeline.draws.sample_id`).

    A line is on disk before its step is trained. Each start of a rank writes a file of its own, named after its first step; a run
    that was interrupted has some steps in several files, with the same ids.

    Args:
        folder: a local folder.
        step: the first step of this start.
        rank: this rank.
        world: number of ranks.
    """

    def __init__(self, folder: Path, step: int, rank: int, world: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"from-{step:012d}-rank-{rank}-of-{world}"
        self._file = (folder / f"{name}-{len(list(folder.glob(name + '-*')))}.jsonl").open("a", buffering=1)

    def write(self, step: int, ids: np.ndarray) -> None:
        """Add a step's line."""
        self._file.write(json.dumps({"step": step, "ids": ids.tolist()}) + "\n")
