"""Finds shortcuts: if a network can answer a task on pixel noise, the rendering gives the answer away.

    python -m benchmarks.shortcuts                      every task, 20,000 samples, 2,000 steps
    python -m benchmarks.shortcuts --task rotation_angle --steps 5000

Prints for each task how far above chance a small network comes on samples that it was not trained on, in standard errors.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.draws import Draws
from pipeline.engines.cpu_ops import CpuOps
from pipeline.labels import Classes, Direction, Order
from pipeline.tasks import Task, registry
from pipeline.tasks.assigned import Assigned
from trainers.networks.backbones import seeded

_CHUNK = 500
_HELD_OUT = 0.25
_BATCH = 64


def depends_on_content(task: Task) -> bool:
    """Whether the task draws a label that should depend on the picture's content alone: a class, an order, an angle."""
    return isinstance(task.label_kind(), Classes | Order | Direction) and not (isinstance(task, Assigned) or task.learns_classes)


def noise_pairs(task: Task, size: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, uint8 (count, ...), and labels of a task on images of independent uniform pixels."""
    draws, random = Draws(seed, 0, np.arange(count, dtype=np.uint64)), np.random.default_rng(seed)
    inputs, labels = [], []
    for start in range(0, count, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, count))
        drawn = task.draw(draws.of(rows).stream(task.name), size)
        image = random.integers(0, 256, (len(rows), task.frames * size, size, 3), np.uint8)
        inputs.append(task.render(CpuOps(size), image, drawn))
        labels.append(drawn["label"])
    return np.concatenate(inputs), np.concatenate(labels)


class _Network(nn.Module):
    """Two convolutions, the mean in each of 4 x 4 places, one linear layer; patches side by side."""

    def __init__(self, patches: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        )
        self.last = nn.Linear(patches * 16 * 16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        return self.last(self.layers(x.flatten(0, 1)).view(n, -1))


def blind_scores(task: Task, size: int, samples: int, steps: int, seed: int = 0) -> np.ndarray:
    """Train on three quarters of the noise pairs; how much better than chance each other sample is answered.

    Returns:
        float (samples / 4,): of mean 0 for any answer that does not know the label. Right or wrong minus chance for a class,
        share of right places minus chance for an order, 90 degrees minus the error for an angle.
    """
    inputs, labels = noise_pairs(task, size, samples, seed)
    shape, kind = inputs.shape, task.label_kind()
    pixels = torch.from_numpy(inputs).view(len(inputs), -1, *shape[-3:]).permute(0, 1, 4, 2, 3).float()
    deviation, mean = torch.std_mean(pixels, dim=(3, 4), keepdim=True)
    pixels, label = (pixels - mean) / (deviation + 1), torch.from_numpy(labels)
    held = int(samples * _HELD_OUT)
    outputs = kind.count if isinstance(kind, Classes) else 2 if isinstance(kind, Direction) else label.shape[1] ** 2
    with seeded(seed):
        network = _Network(pixels.shape[1], outputs)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(steps):
            rows = torch.randint(held, samples, (_BATCH,))
            predicted, wanted = network(pixels[rows]), label[rows]
            if isinstance(kind, Direction):
                loss = F.mse_loss(predicted, wanted)
            else:
                loss = F.cross_entropy(predicted.view(*wanted.shape, -1).flatten(0, -2), wanted.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        predicted, wanted = torch.cat([network(part) for part in pixels[:held].split(_BATCH)]), label[:held]
    if isinstance(kind, Direction):
        sine = predicted[:, 0] * wanted[:, 1] - predicted[:, 1] * wanted[:, 0]
        return (90 - torch.atan2(sine, (predicted * wanted).sum(1)).abs().rad2deg()).double().numpy()
    right = (predicted.view(*wanted.shape, -1).argmax(-1) == wanted).double()
    return (right.view(held, -1).mean(1) - 1 / (predicted.shape[1] // (wanted.shape[1] if wanted.ndim > 1 else 1))).numpy()


def main() -> None:
    """Print a line a task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=sorted(registry()), action="append")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    for name, cls in registry().items():
        task = cls()
        if depends_on_content(task) and (not given.task or name in given.task):
            gains = blind_scores(task, given.size, given.samples, given.steps)
            error = gains.std(ddof=1) / np.sqrt(len(gains))
            print(f"{name:20} {gains.mean():+.4f} above chance, {gains.mean() / error:+.1f} standard errors", flush=True)


if __name__ == "__main__":
    main()
