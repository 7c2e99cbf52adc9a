"""One engine's part of the self-test: generated clips and every registered task, rendered in a process of its own.

Run as a module it is that process, so that a decoder or driver that crashes is a finding of `doctor` and not its end: the
engine's name comes as the argument, and an uncompressed archive of the pixels goes to stdout.
"""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.draws import sample_id
from pipeline.errors import RunError
from pipeline.processes.home import HOME
from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.corpus import Sample

SIZE, FRAMES = 96, 3
BAD = ("text", "truncated")
"""Keys of the samples that must be refused."""

_SECONDS = 300.0
_REFUSED, _ALONE = "refused", "alone"


@dataclass(frozen=True)
class EngineOutput:
    """What an engine made of the test's samples.

    Args:
        columns: of the good samples, in their order: `image`, `frames` and each `<task>.input`, `<task>.label`, `<task>.mask`.
        alone: the same, rendered one sample at a time and left on the device until the end, as a trainer takes them.
        refused: keys of the samples that were refused.
    """

    columns: dict[str, np.ndarray]
    alone: dict[str, np.ndarray]
    refused: list[str]


def recipe() -> Recipe:
    """The recipe of the test: every registered task with its defaults on centred crops of clips.

    Raises:
        UserError: a registered task needs parameters, or cannot run on these crops.
    """
    from pipeline.tasks import registry

    return parse_recipe(
        {
            "name": "doctor",
            "seed": 7,
            "corpus": {"shards": "generated", "frames": FRAMES, "annotations": {"labels": "none"}},
            "image": {"size": SIZE, "crop": "center", "flip": False},
            "tasks": {name: {} for name in registry()},
            "engine": "cpu",
        },
        "the self-test's recipe",
    )


def samples() -> list[Sample]:
    """Generated clips as files: colour and grey JPEG, PNG, WebP, and two whose last frame is damaged."""
    clips = {name: [_encoded(i, k, fmt, mode) for k in range(FRAMES)] for i, (name, fmt, mode) in enumerate(_FILES)}
    *whole, last = clips["jpeg"]
    clips |= {"truncated": [*whole, last[: len(last) // 3]], "text": [*whole, b"this is not an image\n" * 20]}
    return [
        Sample(key, sample_id(key), b"".join(files), "img", -1, None, [len(file) for file in files])
        for key, files in sorted(clips.items())
    ]


def reference() -> np.ndarray:
    """The good samples' centred first frames as PIL decodes and resizes them: uint8 (n, SIZE, SIZE, 3)."""
    from PIL import Image

    crops = []
    for sample in samples():
        if sample.key in BAD:
            continue
        with Image.open(io.BytesIO(sample.files()[0])) as file:
            photo = file.convert("RGB")
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        crop = photo.crop((left, top, left + side, top + side))
        crops.append(np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    return np.stack(crops)


def render_apart(engine: str) -> EngineOutput:
    """Render with an engine, `cpu`, `dali` (on the CPU) or `dali:0` (on GPU 0), in another process.

    Raises:
        RunError: the process failed; with the end of its output.
    """
    command = [sys.executable, "-m", "cluster.doctor.selftest", engine]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS, cwd=HOME)
    except subprocess.TimeoutExpired:
        raise RunError(f"no answer within {_SECONDS:.0f} seconds") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with code {done.returncode}"
        raise RunError(f"its process {how}: {last[0]}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as archive:
        content = dict(archive)
    refused = content.pop(_REFUSED).tolist()
    alone = {name.partition("/")[2]: column for name, column in content.items() if name.startswith(f"{_ALONE}/")}
    return EngineOutput({name: content[name] for name in alone}, alone, refused)


_FILES = (("jpeg", "JPEG", "RGB"), ("jpeg-grey", "JPEG", "L"), ("png", "PNG", "RGB"), ("webp", "WEBP", "RGB"))


def _encoded(number: int, frame: int, fmt: str, mode: str) -> bytes:
    """Encode a generated image: smooth colours with a few edges, like a photo, and a disc that moves from frame to frame."""
    from PIL import Image, ImageDraw

    height, width = 150 + 10 * number, 200
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (17 + 5 * k) + number) * np.cos(y / (23 - 3 * k)) for k in range(3)]
    picture = Image.fromarray((127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8))
    left = 60 + 20 * frame
    ImageDraw.Draw(picture).ellipse((left, 40, left + 70, 110), fill=(230, 60 * number, 40))
    file = io.BytesIO()
    picture.convert(mode).save(file, fmt, quality=95)
    return file.getvalue()


def _engine(name: str, spec: Recipe, stay: bool = False) -> Any:
    if name == "cpu":
        from pipeline.engines.cpu import CpuEngine

        return CpuEngine(spec.tasks, SIZE)
    from pipeline.engines.dali import DaliEngine

    _, _, device = name.partition(":")
    return DaliEngine(spec.tasks, SIZE, device_id=int(device) if device else None, stay=stay, frames=FRAMES)


def _on_host(column: Any) -> np.ndarray:
    return column if isinstance(column, np.ndarray) else column.cpu().numpy()


def _main() -> None:
    from pipeline.rendering.renderer import Renderer

    spec = recipe()
    render = Renderer(spec)
    render.engine = _engine(sys.argv[1], spec)
    given = samples()
    together = render(given, 0)
    good = np.flatnonzero(together.columns["weight"])
    kept = [name for name in together.columns if name in ("image", "frames") or "." in name]
    render.engine = _engine(sys.argv[1], spec, stay=True)  # alone, and as a trainer takes them: left on the device
    single = [render([given[i]], 0).columns for i in good]
    content = {name: together.columns[name][good] for name in kept}
    content |= {f"{_ALONE}/{name}": np.concatenate([_on_host(columns[name]) for columns in single]) for name in kept}
    content[_REFUSED] = np.array([given[i].key for i in sorted(together.failures)], dtype=np.str_)
    archive = io.BytesIO()
    np.savez(archive, **content)
    sys.stdout.buffer.write(archive.getvalue())


if __name__ == "__main__":
    _main()
