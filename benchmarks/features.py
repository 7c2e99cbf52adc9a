"""What the contenders that compute features share: the network and its weights, photos as files, and the check of vectors."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.work import Job, members
from pipeline.shards.writing import TarWriter
from pipeline.storage import write_atomic

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels."""
PRECISION = "precision"
"""The option of a job that says in what the network computes, `float32` (without it) or `bfloat16`."""
_JOINED = 4  # shards
COSINE = 0.99
"""The least cosine of a delivered vector and that of PIL's crop, after the mean vector is taken away from both."""


def weights_file(job: Job) -> Path:
    """Random weights of a job's network, written once beside its photos."""
    import torch

    path = Path(job.shards[0]).parent.parent / f"{job.network}.pt"
    if not path.exists():
        torch.manual_seed(1)
        with write_atomic(str(path)) as file:  # several actors may do it at once
            torch.save(_random(job.network).state_dict(), file)
    return path


def _random(name: str) -> Any:
    """A torchvision network, or a ResNet with a block a stage, with random weights."""
    import torchvision
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1]) if name == "resnet10" else torchvision.models.get_model(name, weights=None)


class Network:
    """The network of a job as its users write it: from uint8 crops (n, s, s, 3) to vectors, float32 (n, width).

    Args:
        job: the job.
        threads: of torch.
    """

    def __init__(self, job: Job, threads: int = 1) -> None:
        import torch

        torch.set_num_threads(threads)
        network = _random(job.network)
        network.load_state_dict(torch.load(weights_file(job), weights_only=True))
        network.fc = torch.nn.Identity()
        self._network = network.eval().to(memory_format=torch.channels_last)
        self._mean, self._std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        self._fast = dict(job.options).get(PRECISION) == "bfloat16"

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        import torch

        images = torch.from_numpy(crops).permute(0, 3, 1, 2).float().sub_(self._mean).div_(self._std)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if self._fast else nullcontext():
            vectors: np.ndarray = self._network(images).float().numpy()
        return vectors


def as_files(job: Job) -> list[str]:
    """The photos of a job's shards as files beside them, unpacked once; their paths."""
    folder = Path(job.shards[0]).parent / "files"
    paths = []
    for shard in job.shards:
        part = folder / Path(shard).stem
        if not part.exists():
            part.mkdir(parents=True)
            for number, photo in enumerate(members(shard)):
                (part / f"{number:04d}.jpg").write_bytes(photo)
        paths += sorted(str(path) for path in part.iterdir())
    return paths


def larger_shards(job: Job) -> list[Path]:
    """The photos of a job's shards in shards of 256 or more beside them, joined once."""
    folder = Path(job.shards[0]).parent / "joined"
    folder.mkdir(exist_ok=True)
    made = []
    for first in range(0, len(job.shards), _JOINED):
        made.append(folder / Path(job.shards[first]).name)
        if not made[-1].exists():
            with made[-1].open("wb") as file:
                tar = TarWriter(file)
                for n, photo in enumerate(photo for shard in job.shards[first : first + _JOINED] for photo in members(shard)):
                    tar.add(f"{first:04d}-{n:06d}.jpg", photo)
                tar.finish()
    return made


def wrong_vectors(vectors: Any, references: np.ndarray, job: Job) -> str | None:
    """What is wrong with vectors, in any order, of some of the photos whose crops are `references`; None if nothing is."""
    wanted = Network(job)(references.astype(np.uint8))
    middle = wanted.mean(0)
    ours, theirs = (_unit(np.asarray(some, np.float32) - middle) for some in (vectors, wanted))
    cosines = ours @ theirs.T
    worst, seen = float(cosines.max(1).min()), len(np.unique(cosines.argmax(1)))
    if worst < COSINE or seen < 0.9 * min(len(ours), len(theirs)):
        return f"the worst vector has cosine {worst:.4f} with that of any photo; {seen} photos for {len(ours)} vectors"
    return None


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
