"""Finds the images that kill a decoder, by decoding one after another in a process of their own.

Run as a module it is that process: a line of JSON and the images' bytes come in, and a line goes out after each image that was
survived.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from pipeline.errors import RunError
from pipeline.home import HOME
from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Sample

_READY, _SURVIVED = b"ready", b"survived"
_FROM_OUTSIDE, _MOST_SHOTS = (signal.SIGKILL, signal.SIGTERM), 2
"""Signals that others send. The image at hand is blamed for them only if they come again and again: it may fill the memory."""


def find_killers(samples: Sequence[Sample], recipe: Recipe, epoch: int, center: bool) -> dict[int, str]:
    """Decode each sample as `Renderer` would, outside this process.

    Args:
        samples: the samples of a unit on which a process died.
        recipe: the recipe; its tasks do not matter, only its crop.
        epoch: the epoch, which the crop depends on.
        center: as for `Renderer`.

    Returns:
        The reason for each sample that killed the process, by position.

    Raises:
        RunError: the process could not start, or failed without being killed.
    """
    killers: dict[int, str] = {}
    start = shot = 0
    while start < len(samples):
        survived, code = _child(samples[start:], recipe, epoch, center)
        if survived == len(samples) - start:
            break
        if -code in _FROM_OUTSIDE and shot < _MOST_SHOTS:
            start, shot = start + survived, shot + 1
            continue
        killers[start + survived] = f"the decoder's process died on this image ({signal.Signals(-code).name})"
        start, shot = start + survived + 1, 0
    return killers


def _child(samples: Sequence[Sample], recipe: Recipe, epoch: int, center: bool) -> tuple[int, int]:
    """How many samples were survived, and the exit code."""
    meta = [
        {"key": s.key, "id": s.id, "ext": s.ext, "size": len(s.encoded), "problem": s.problem, "sizes": list(s.sizes)}
        for s in samples
    ]
    bare = recipe.model_copy(update={"tasks": {}})
    head = {"recipe": bare.model_dump(mode="json"), "epoch": epoch, "center": center, "samples": meta}
    with tempfile.TemporaryFile() as images:
        images.write(json.dumps(head).encode() + b"\n")
        for sample in samples:
            images.write(sample.encoded)
        images.seek(0)
        command = [sys.executable, "-m", "pipeline.isolate"]
        done = subprocess.run(command, stdin=images, capture_output=True, check=False, cwd=HOME)
    lines = done.stdout.splitlines()
    if done.returncode > 0 or (_READY not in lines and -done.returncode not in _FROM_OUTSIDE):
        words = done.stderr.decode(errors="replace").strip()
        raise RunError(f"the search for images that kill the decoder failed (exit code {done.returncode}): {words[-2000:]}")
    return lines.count(_SURVIVED), done.returncode


def _main() -> None:
    from pipeline.render import Renderer

    def say(word: bytes) -> None:
        sys.stdout.buffer.write(word + b"\n")
        sys.stdout.buffer.flush()

    head = json.loads(sys.stdin.buffer.readline())
    render = Renderer(Recipe.model_validate(head["recipe"]), center=head["center"])
    say(_READY)
    for meta in head["samples"]:
        encoded = sys.stdin.buffer.read(meta["size"])
        render([Sample(meta["key"], meta["id"], encoded, meta["ext"], -1, meta["problem"], meta["sizes"])], head["epoch"])
        say(_SURVIVED)


if __name__ == "__main__":
    _main()
