"""Checks what a contender delivers: its crops against PIL's, and its pairs against its crops."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from benchmarks.features import wrong_vectors
from benchmarks.peers import FILL
from benchmarks.work import Batch, Job, members

LEVELS, WORST = 2.0, 8.0
"""The largest accepted difference from PIL, in levels of 255, in the mean over the photos and for the worst of them: DCTs and
resize kernels differ by one, resizing without antialiasing by three to six."""
REDUCED_LEVELS, REDUCED_WORST = 2.5, 10.0
"""The same for photos that are decoded at half their size, which is another filter than PIL's."""
_LOOKED_AT, _PUZZLES = 24, 6
VIEWS: dict[str, Callable[[int], dict[str, tuple[int, int]]]] = {
    "simclr": lambda size: {"input": (2, size)},
    "swav": lambda size: {"input": (2, size), "small": (6, 96)},
}
"""The columns of view tasks: number and side of views."""
GREY, _GREY_PHOTOS = 0.2, 0.05
"""Share of views that lose their colour, and how many photos at most have none."""


def save_references(shards: tuple[str, ...], size: int, path: Path) -> None:
    """Save PIL's crop of each photo: the centred square, `size` pixels, bilinear, antialiased; uint8 (n, size, size, 3)."""
    import io

    from PIL import Image

    crops = []
    for shard in shards:
        for data in members(shard):
            photo = Image.open(io.BytesIO(data)).convert("RGB")
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            square = (left, top, left + side, top + side)
            crops.append(np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR, box=square)))
    np.save(path, np.stack(crops))


def check(contender: str, job: Job, references: str) -> str | None:
    """Run a contender on centred squares and check what it delivers.

    Returns:
        What is wrong, or None.
    """
    module = importlib.import_module(f"benchmarks.contenders.{contender}")
    wanted = np.load(references).astype(np.int16)
    reduced = dict(job.options).get("image", {}).get("reduced", False)
    bounds = (REDUCED_LEVELS, REDUCED_WORST) if reduced else (LEVELS, WORST)
    for tasks in [(task,) for task in job.tasks] if module.PASSES and job.tasks else [job.tasks]:
        with closing(module.batches(replace(job, tasks=tasks, center=True))) as batches:
            for batch in islice(batches, 1):
                if job.network:
                    wrong = wrong_vectors(batch["vector"], wanted, job)
                    return f"{contender}: {wrong}" if wrong else None
                seen = tasks[0] in VIEWS if tasks else False
                wrong = _wrong_views(batch, tasks[0], job.size) if seen else _wrong(batch, tasks, wanted, job.size, bounds)
                if wrong:
                    return f"{contender}: {wrong}"
    return None


def _wrong_views(batch: Batch, task: str, size: int) -> str | None:
    """Whether views have their shapes, are grey as often as they should be, and are seldom alike."""
    for name, (count, side) in VIEWS[task](size).items():
        pixels = _upright(batch[f"{task}.{name}"])
        if pixels.shape[1:] != (count, side, side, 3):
            return f"{task}.{name} has shape {pixels.shape}"
        levels = pixels.astype(np.float32) * (1 if pixels.dtype == np.uint8 else 255)
        grey = float((np.ptp(levels, axis=-1).max((2, 3)) < 2.5).mean())
        bound = 4 * (GREY * (1 - GREY) / (len(levels) * count)) ** 0.5 + _GREY_PHOTOS
        if abs(grey - GREY) > bound:
            return f"{task}.{name}: {grey:.2f} of the views are grey"
        if not 60 < levels.mean() < 160 or (levels[:, 0] == levels[:, 1]).all(axis=(1, 2, 3)).any():
            return f"{task}.{name}: mean {levels.mean():.0f}, or two views are the same"
    return None


def _wrong(batch: Batch, tasks: tuple[str, ...], references: np.ndarray, size: int, bounds: tuple[float, float]) -> str | None:
    columns = {name: _upright(column[:_LOOKED_AT]) for name, column in batch.items() if not name.endswith(("label", "id"))}
    for name in ["image", *(f"{task}.input" for task in tasks)]:
        if name in columns and columns[name].dtype != np.uint8:
            return f"{name} is {columns[name].dtype}"
    for task in tasks or ("image",):
        pixels = columns["image" if task == "image" else f"{task}.input"]
        masks = columns["occlusion.mask"].reshape(-1, size, size).astype(bool) if task == "occlusion" else [None] * len(pixels)
        rows = min(len(pixels), _PUZZLES if task == "jigsaw" else _LOOKED_AT)
        off = [_distance(task, pixels[row], masks[row], references) for row in range(rows)]
        if np.mean(off) > bounds[0] or max(off) > bounds[1]:
            found = f"{np.mean(off):.1f} levels in the mean and {max(off):.1f} at most"
            return f"{task}: {found} from what PIL makes of any photo"
    return None


def _distance(task: str, shown: np.ndarray, mask: np.ndarray | None, references: np.ndarray) -> float:
    """The least mean difference from what the task makes of any reference."""
    if task == "jigsaw":  # every patch must lie somewhere in one photo, in colour or without
        return min(_patches_off(shown, reference.astype(np.uint8)) for reference in _alike(shown, references))
    if task == "rotation":
        return min(float(np.abs(np.rot90(shown, k).astype(np.int16) - references).mean((1, 2, 3)).min()) for k in range(4))
    if task == "colorization":
        luma = np.rint(references @ np.array([0.299, 0.587, 0.114])).astype(np.int16)[..., None]
        return float(np.abs(shown.astype(np.int16) - luma).mean((1, 2, 3)).min())
    if mask is not None:
        if not 0.05 < mask.mean() < 0.4 or not (np.abs(shown[mask].astype(int) - FILL) <= 1).all():
            return 255.0
        return float(np.abs(shown.astype(np.int16)[~mask] - references[:, ~mask]).mean((1, 2)).min())
    return float(np.abs(shown.astype(np.int16) - references).mean((1, 2, 3)).min())


def _alike(patches: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The photos whose brightness is nearest to that of the patches."""
    weights = np.array([0.299, 0.587, 0.114])
    seen, wanted = patches @ weights, references @ weights
    apart = np.abs(seen.mean() - wanted.mean((1, 2))) + np.abs(seen.std() - wanted.std((1, 2)))
    return references[np.argsort(apart)[:16]]


def _patches_off(patches: np.ndarray, reference: np.ndarray) -> float:
    gray = cv2.cvtColor(cv2.cvtColor(reference, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    best = 255.0
    for photo in (reference, gray):
        worst = 0.0
        for patch in patches:
            squares = cv2.matchTemplate(photo, np.ascontiguousarray(patch), cv2.TM_SQDIFF).min() / patch.size
            worst = max(worst, float(max(squares, 0.0)) ** 0.5)
            if worst > 2 * WORST:
                break
        best = min(best, worst)
    return best / 2  # a root mean square, and where the mean difference is one it is about two


def _upright(column: np.ndarray) -> np.ndarray:
    """Channels last."""
    planar = column.ndim >= 4 and column.shape[-1] not in (1, 3) and column.shape[-3] in (1, 3)
    return np.moveaxis(column, -3, -1) if planar else column
