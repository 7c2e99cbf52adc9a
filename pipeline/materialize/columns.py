"""The columns of a pair that go to disk, and how each is encoded as a file of a sample and decoded again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.draws import Draws
from pipeline.engines import pixel_shapes
from pipeline.errors import UserError
from pipeline.materialize.png import encode_png, png_identity
from pipeline.recipe.outputs import Render
from pipeline.recipe.schema import Recipe

MASK = "mask.png"
"""The extension of a task's mask in a tar, after the task's name; in older corpora `label.png`."""

_JPEG_QUALITY = 95
_WEBP_METHOD = 0
"""Of lossless WebP: the fastest of Pillow's. The others take 4 to 20 times as long for files that are 11 to 15 % smaller."""


@dataclass(frozen=True)
class StoredColumn:
    """A column of the batch on disk.

    Args:
        name: the column's name in a batch, such as `rotation.input`.
        member: its extension in a sample of a tar, such as `rotation.input.png`.
        kind: `pixels` is stored as the recipe says, `mask` as a PNG of 0 and 255, `class` as a number in text, `array` as JSON.
        shape: of one row.
        dtype: numpy's name of it.
    """

    name: str
    member: str
    kind: Literal["pixels", "mask", "class", "array"]
    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def stored_columns(recipe: Recipe) -> list[StoredColumn]:
    """The columns that a recipe's pairs have on disk: inputs and labels of its tasks, and the crop where a label names it.

    Raises:
        UserError: a task's label cannot be stored.
    """
    form = recipe.render.image or "png"
    kinds = {name: task.label_kind() for name, task in recipe.tasks.items()}
    found = []
    if any(getattr(kind, "target", None) == "image" for kind in kinds.values()):
        found.append(StoredColumn("image", f"image.{form}", "pixels", (recipe.image.size, recipe.image.size, 3), "uint8"))
    draws = Draws(recipe.seed, 0, np.zeros(1, np.uint64))
    for name in sorted(recipe.tasks):
        pixels = pixel_shapes({name: recipe.tasks[name]}, recipe.image.size, crop=False)
        found += [StoredColumn(column, f"{column}.{form}", "pixels", shape, "uint8") for column, shape in pixels.items()]
        drawn = recipe.tasks[name].draw(draws.stream(name), recipe.image.size)
        if "label" in drawn:
            label = np.asarray(drawn["label"])
            if label.dtype.kind not in "iu" and label.ndim == 1:
                raise UserError(f"tasks.{name}: a label of type {label.dtype} cannot be stored, only whole numbers and arrays")
            kind, ext = ("class", "cls") if label.ndim == 1 else ("array", "json")
            found.append(StoredColumn(f"{name}.label", f"{name}.label.{ext}", kind, label.shape[1:], label.dtype.name))  # type: ignore[arg-type]
        source = getattr(recipe.tasks[name], "annotation", None)
        if source is not None and recipe.corpus.annotations[source].weight:
            found.append(StoredColumn(f"{name}.weight", f"{name}.weight.json", "array", (), "float32"))
        if "mask" in drawn:
            found.append(StoredColumn(f"{name}.mask", f"{name}.{MASK}", "mask", drawn["mask"].shape[1:], "uint8"))
    return found


def encoder(column: StoredColumn, spec: Render) -> Callable[[np.ndarray], bytes]:
    """A function that encodes one row of a column as the bytes of its file."""
    match column.kind:
        case "class":
            return lambda row: str(int(row)).encode()
        case "array":
            return lambda row: json.dumps(row.tolist()).encode()
        case "mask":
            return lambda row: encode_png((row != 0).astype(np.uint8)[:, :, None] * np.uint8(255))
    form = spec.image or "png"
    if form == "npy":
        return _npy
    lossless = {"png": encode_png, "webp": _webp}
    write = lossless[form] if form in lossless and spec.quality is None else _lossy(form, spec.quality or _JPEG_QUALITY)
    return lambda row: write(row.reshape(-1, *row.shape[-2:]))  # patches lie below each other


def encoders(recipe: Recipe) -> dict[str, str]:
    """The encoders of the lossless images in a recipe's tars, by format: the bytes of the files depend on them."""
    if recipe.render.format != "webdataset":
        return {}
    forms = {column.member.rpartition(".")[2] for column in stored_columns(recipe)}
    is_webp = "webp" in forms and recipe.render.quality is None
    return {
        **({"png": png_identity()} if "png" in forms else {}),
        **({"webp": f"Pillow, method {_WEBP_METHOD}"} if is_webp else {}),
    }


def decode(column: StoredColumn, data: bytes | memoryview) -> np.ndarray:
    """Decode one row of a column from the bytes of its file.

    Raises:
        ValueError: the bytes are not such a file.
    """
    if column.kind in ("class", "array"):
        return np.asarray(json.loads(bytes(data)), column.dtype).reshape(column.shape)
    if column.member.endswith(".npy"):
        return np.load(io.BytesIO(data), allow_pickle=False).reshape(column.shape)
    import cv2

    grey = column.kind == "mask" or column.shape[-1] == 1
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"{column.member} cannot be decoded")
    if not grey:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    if column.kind == "mask":
        pixels = (pixels > 127).astype(np.uint8)
    return pixels.reshape(column.shape)


def _npy(row: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(row), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _webp(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    image.save(buffer, "webp", lossless=True, quality=0, method=_WEBP_METHOD)
    return buffer.getvalue()


def _lossy(form: str, quality: int) -> Callable[[np.ndarray], bytes]:
    """An encoder of (h, w, 3) or (h, w, 1) uint8 as `jpg` or `webp`."""
    import cv2

    option = {"jpg": cv2.IMWRITE_JPEG_QUALITY, "webp": cv2.IMWRITE_WEBP_QUALITY}[form]

    def encode(pixels: np.ndarray) -> bytes:
        shown = pixels if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        done, data = cv2.imencode(f".{form}", shown, [option, quality])
        if not done:
            raise ValueError(f"an image of {pixels.shape} cannot be stored as {form}")
        encoded: bytes = data.tobytes()
        return encoded

    return encode


def as_row(column: StoredColumn) -> dict[str, Any]:
    """Plain data that describes the column, for the manifest."""
    return {"name": column.name, "member": column.member, "shape": list(column.shape), "dtype": column.dtype}
