"""The class of an image as a target: its `cls`, which the index holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.shards.corpus import Sample
from pipeline.targets.base import Crops, Target

NO_LABEL = "it has no label"


@dataclass(frozen=True)
class ClassTarget(Target):
    """One class for the image: column `class`, int64 (n,), which every batch has.

    Args:
        labels: label of each class number of the corpus; a sample without one is quarantined.
    """

    labels: dict[int, int]

    def asked(self, sample: Sample) -> Sample:
        label = self.labels.get(sample.label, -1)
        return replace(sample, label=label, problem=sample.problem or (NO_LABEL if label < 0 else None))

    def read(self, body: bytes | memoryview, height: int, width: int) -> None:
        return None

    def columns(self, found: Sequence[Any], crops: Crops) -> dict[str, np.ndarray]:
        return {}
