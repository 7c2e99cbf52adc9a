"""What a packed folder holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.shards.opening import open_corpus

CLASSES = ["astronaut", "cat", "coffee"]
"""Those of the fixture `photos`."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def samples(folder: Path | str) -> dict[str, tuple[bytes, int]]:
    corpus = open_corpus(str(folder))
    read = [sample for i in range(len(corpus.urls)) for sample in corpus.read(i, np.arange(corpus.counts[i]))]
    return {sample.key: (bytes(sample.encoded), sample.label) for sample in read}
