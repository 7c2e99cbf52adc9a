"""The pretext tasks as one would write them by hand: on torch tensors with torchvision, and on arrays with OpenCV."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from benchmarks.work import RATIO, SCALE, Job
from pipeline.tasks.jigsaw import distant_permutations

FILL = (124, 116, 104)
GRAY = 0.3


@cache
def orders() -> list[list[int]]:
    """The permutations of the jigsaw: the same hundred for all contenders."""
    found: list[list[int]] = distant_permutations(9, 100).tolist()
    return found


def window(height: int, width: int, center: bool) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random resized crop, drawn as torchvision draws it; or the centred square."""
    if center:
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side
    for _ in range(10):
        area, ratio = height * width * random.uniform(*SCALE), math.exp(random.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def mirrored(center: bool) -> bool:
    """Whether to mirror a crop."""
    return not center and random.random() < 0.5


def corners(size: int) -> tuple[int, int, list[tuple[int, int]]]:
    """A jigsaw: which permutation, the patches' side, and where each is cut (9 top left corners)."""
    cell = size // 3
    gap, room = round(0.06 * cell), round(0.1 * cell)
    label = random.randrange(100)
    cut = [
        (i // 3 * cell + gap // 2 + random.randint(0, room), i % 3 * cell + gap // 2 + random.randint(0, room))
        for i in orders()[label]
    ]
    return label, cell - gap - room, cut


def box(size: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of an occlusion."""
    area, ratio = random.uniform(0.1, 0.3) * size * size, math.exp(random.uniform(math.log(0.5), math.log(2)))
    h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
    return random.randint(0, size - h), random.randint(0, size - w), h, w


def _rotation(image: Any) -> dict[str, Any]:
    import torch

    turns = random.randrange(4)
    return {"rotation.input": torch.rot90(image, turns, (1, 2)), "rotation.label": turns}


def _jigsaw(image: Any) -> dict[str, Any]:
    import torch
    from torchvision.transforms.v2 import functional

    label, side, cut = corners(image.shape[1])
    if random.random() < GRAY:
        image = functional.rgb_to_grayscale(image, 3)
    return {"jigsaw.input": torch.stack([image[:, y : y + side, x : x + side] for y, x in cut]), "jigsaw.label": label}


def _occlusion(image: Any) -> dict[str, Any]:
    import torch

    size = image.shape[1]
    y, x, h, w = box(size)
    hidden, mask = image.clone(), torch.zeros((size, size), dtype=torch.uint8)
    hidden[:, y : y + h, x : x + w] = torch.tensor(FILL, dtype=torch.uint8)[:, None, None]
    mask[y : y + h, x : x + w] = 1
    return {"image": image, "occlusion.input": hidden, "occlusion.mask": mask}


def _colorization(image: Any) -> dict[str, Any]:
    from torchvision.transforms.v2 import functional

    return {"image": image, "colorization.input": functional.rgb_to_grayscale(image)}


_ON_TENSORS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "rotation": _rotation,
    "jigsaw": _jigsaw,
    "occlusion": _occlusion,
    "colorization": _colorization,
}


def pairs_of_tensor(image: Any, job: Job) -> dict[str, Any]:
    """All pairs of a job from a crop, uint8 (3, s, s)."""
    if not job.tasks:
        return {"image": image}
    made: dict[str, Any] = {}
    for task in job.tasks:
        made |= _ON_TENSORS[task](image)
    return made


def decoded(photo: bytes) -> Any:
    """A photo decoded with torchvision, uint8 (3, h, w)."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(photo), dtype=torch.uint8), ImageReadMode.RGB)


def crop_tensor(image: Any, job: Job) -> Any:
    """Random resized crop and mirror of a decoded photo, uint8 (3, h, w) -> (3, s, s), with torchvision."""
    from torchvision.transforms.v2 import functional

    y, x, h, w = window(image.shape[1], image.shape[2], job.center)
    crop = functional.resized_crop(image, y, x, h, w, [job.size, job.size], antialias=True)
    return functional.horizontal_flip(crop) if mirrored(job.center) else crop


def columns_of(job: Job, n: int) -> dict[str, np.ndarray]:
    """Empty columns of a batch, pixels (n, h, w, c)."""
    size, side = job.size, job.size // 3 - round(0.06 * (job.size // 3)) - round(0.1 * (job.size // 3))
    whole = (size, size, 3)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "rotation.input": (whole, np.uint8),
        "rotation.label": ((), np.int64),
        "jigsaw.input": ((9, side, side, 3), np.uint8),
        "jigsaw.label": ((), np.int64),
        "occlusion.input": (whole, np.uint8),
        "occlusion.mask": ((size, size), np.uint8),
        "colorization.input": ((size, size, 1), np.uint8),
    }
    needed = {name: shape for name, shape in shapes.items() if name.split(".")[0] in job.tasks}
    if not job.tasks or {"occlusion", "colorization"} & set(job.tasks):
        needed["image"] = whole, np.uint8
    return {name: np.empty((n, *shape), dtype) for name, (shape, dtype) in needed.items()}


def crop_into(photo: np.ndarray, out: np.ndarray, job: Job) -> None:
    """Random resized crop and mirror of a decoded photo (h, w, 3) into (s, s, 3), with OpenCV."""
    import cv2

    y, x, h, w = window(*photo.shape[:2], job.center)
    shrinks = h > job.size or w > job.size
    cv2.resize(photo[y : y + h, x : x + w], (job.size, job.size), dst=out, interpolation=cv2.INTER_AREA if shrinks else 1)
    if mirrored(job.center):
        cv2.flip(out, 1, dst=out)


def pairs_into(columns: dict[str, np.ndarray], row: int, image: np.ndarray, job: Job) -> None:
    """All pairs of a job from a crop, uint8 (s, s, 3), written into a row of a batch, with OpenCV."""
    import cv2

    if "image" in columns and columns["image"][row].ctypes.data != image.ctypes.data:
        columns["image"][row] = image
    for task in job.tasks:
        if task == "rotation":
            turns, out = random.randrange(4), columns["rotation.input"][row]
            if turns:
                cv2.rotate(image, (0, 2, 1, 0)[turns], dst=out)
            else:
                out[:] = image
            columns["rotation.label"][row] = turns
        elif task == "jigsaw":
            label, side, cut = corners(job.size)
            source = image
            if random.random() < GRAY:
                source = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            for k, (y, x) in enumerate(cut):
                columns["jigsaw.input"][row, k] = source[y : y + side, x : x + side]
            columns["jigsaw.label"][row] = label
        elif task == "occlusion":
            y, x, h, w = box(job.size)
            columns["occlusion.input"][row] = image
            columns["occlusion.input"][row, y : y + h, x : x + w] = FILL
            columns["occlusion.mask"][row] = 0
            columns["occlusion.mask"][row, y : y + h, x : x + w] = 1
        else:
            cv2.cvtColor(image, cv2.COLOR_RGB2GRAY, dst=columns["colorization.input"][row, :, :, 0])
