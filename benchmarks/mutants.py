"""Damaged images through every command: nothing may end in a traceback, die unsaid, lose a row, or come out differently twice.

    python -m benchmarks.mutants FOLDER [--mutants 5000] [--seed 0] [--batch 500] [--engines cpu dali]

FOLDER is emptied and used. Makes about sixty files of all kinds, damages them in many ways, and sends them in batches through
`pack`, `inspect --deep`, `preview`, `render` (twice), `verify --deep` and `pairs()` (twice) on each engine. Prints a row for each
engine and command. Exit code 1 if anything but the seconds is above 0.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from pipeline.errors import UserError
from pipeline.materialize.rendered import open_rendered

_COUNTED = ("tracebacks", "deaths unsaid", "rows missing", "bytes that differ")
_PAIRS = """
import hashlib, sys
from pipeline import load_recipe, pairs
rows, digest = 0, hashlib.sha256()
for batch in pairs(load_recipe(sys.argv[1])):
    rows += len(batch["id"])
    for name in sorted(batch):
        digest.update(name.encode() + batch[name].tobytes())
print(rows, digest.hexdigest())
"""


def originals() -> dict[str, bytes]:
    """Good files of all kinds, by a name that ends in their extension."""
    photo = Image.fromarray(data.astronaut()).crop((130, 20, 226, 84))
    turned, exif = photo.rotate(90), Image.Exif()
    exif[274] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [turned, photo.rotate(180)]}
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    kinds: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "JPEG": [
            *((mode, {}) for mode in ("RGB", "L", "CMYK")),
            *(("RGB", how) for how in ({"progressive": True}, {"subsampling": 0}, {"exif": exif}, {"quality": 30})),
            *(("RGB", how) for how in ({"restart_marker_rows": 1}, {"optimize": True}, {"icc_profile": bytes(300)})),
        ],
        "PNG": [
            *((mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
            *(("P", {"bits": bits}) for bits in (1, 2, 4)),
            *(("RGB", how) for how in ({"exif": exif}, frames, {**frames, "default_image": True}, {"compress_level": 0})),
            *((mode, frames) for mode in ("L", "P", "RGBA")),
        ],
        "WEBP": [
            *((mode, how) for mode in ("RGB", "RGBA") for how in ({}, {"lossless": True}, {"exif": exif})),
            ("RGB", frames),
        ],
        "TIFF": [
            *((mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "F")),
            *(("RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
            *(("1", {"compression": name}) for name in ("group3", "group4")),
            *(("RGB", how) for how in ({"exif": exif}, frames, {"big_tiff": True})),
        ],
        "BMP": [(mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")],
        "PPM": [(mode, {}) for mode in ("1", "L", "RGB", "I;16")],
        "GIF": [("P", {}), ("RGB", frames)],
        "JPEG2000": [("RGB", {}), ("RGB", {"no_jp2": True})],
    }
    files = {}
    for format, ways in kinds.items():
        for mode, options in ways:
            buffer = io.BytesIO()
            (deep if mode == "I;16" else photo.convert(mode)).save(buffer, format, **options)
            files[f"{len(files):02d}.{format.lower().replace('jpeg2000', 'jp2')}"] = buffer.getvalue()
    return files


def damaged(file: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """The file, damaged in one of many ways."""
    body, n = bytearray(file), len(file)
    places = random.integers(0, random.choice([32, 128, 600, n, n], 1)[0], random.integers(1, 9)) % n
    at, length = int(random.integers(n)), int(random.integers(1, 64))
    match random.integers(8):
        case 0 | 1:
            for place in places:
                body[place] ^= 1 << int(random.integers(8))
        case 2 | 3:
            for place in places:
                body[place] = random.choice([0, 1, 127, 128, 255, random.integers(256)])
        case 4:
            del body[at:]
        case 5:
            del body[at : at + length]
        case 6:
            body[at:at] = body[places[0] : places[0] + length] if random.integers(2) else random.bytes(length)
        case _:
            body[at:] = other[at * len(other) // n :]
    return bytes(body)


def batches(mutants: int, seed: int, size: int, folder: Path) -> Iterator[tuple[Path, int]]:
    """Folders of mutants, one at a time, and how many are in each."""
    files, random = originals(), np.random.default_rng(seed)
    names = list(files)
    for first in range(0, mutants, size):
        place = folder / f"batch-{first:06d}"
        (place / "photos").mkdir(parents=True)
        count = min(size, mutants - first)
        for n in range(first, first + count):
            name, other = names[n % len(names)], random.choice(names)
            (place / "photos" / f"{n:06d}-{name}").write_bytes(damaged(files[name], files[other], random))
        yield place, count
        shutil.rmtree(place)


class Watch:
    """Runs commands, and counts what must not happen."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def run(self, engine: str, name: str, *words: object) -> str:
        """The output of a command."""
        started, row = time.perf_counter(), self.counts[engine, name]
        done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, errors="replace", check=False)
        row["runs"] += 1
        row["seconds"] += round(time.perf_counter() - started)
        row["tracebacks"] += "Traceback" in done.stderr + done.stdout
        unsaid = done.returncode < 0 or (done.returncode > 0 and "error: " not in done.stderr)
        row["deaths unsaid"] += unsaid
        if done.returncode:
            print(f"{engine} {name}: exit code {done.returncode}: {done.stderr[-600:]}", file=sys.stderr)
        return done.stdout

    def expect(self, engine: str, name: str, what: str, found: Any, expected: Any) -> None:
        """Count a difference."""
        if found != expected:
            self.counts[engine, name][what] += abs(found - expected) if isinstance(found, int) else 1
            print(f"{engine} {name}: {found} where {expected} was due", file=sys.stderr)

    def table(self) -> str:
        """A row for each engine and command."""
        columns = ("runs", *_COUNTED, "seconds")
        lines = [f"| engine | command | {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * len(columns)]
        for (engine, name), row in self.counts.items():
            lines.append(f"| {engine} | {name} | {' | '.join(str(row[column]) for column in columns)} |")
        return "\n".join(lines)


def examine(watch: Watch, place: Path, count: int, engine: str) -> None:
    """Send one batch through every command on one engine."""
    here = place / engine
    shards, recipe = here / "shards", here / "recipe.json"
    call = ("-m", "pseudolabel")
    watch.run(engine, "pack", *call, "pack", place / "photos", shards, "--labels", "none")
    found = json.loads(watch.run(engine, "inspect --deep", *call, "inspect", shards, "--deep", "--json") or "{}")
    accounted = sum(found.get("formats", {}).values()) + len(found.get("quarantine", []))
    watch.expect(engine, "inspect --deep", "rows missing", accounted, count)
    document = {
        "name": "mutants",
        "seed": 1,
        "engine": engine,
        "corpus": {"shards": str(shards)},
        "image": {"size": 32},
        "tasks": {"rotation": {}, "jigsaw": {"permutations": 4}},
        "training": {"batch": 64},
        "failures": {"budget": count},
        "placement": {"actors": 1},
        "render": {"keep_bad": True},
    }
    recipe.write_text(json.dumps(document))  # JSON is YAML
    watch.run(engine, "preview", *call, "preview", recipe, "-o", here / "sheet.png")
    outs = [here / "first", here / "second"]
    good = -1
    for out in outs:
        watch.run(engine, "render", *call, "render", recipe, "--out", out)
        try:
            totals = open_rendered(str(out)).manifest["totals"]
        except UserError as error:  # it left no corpus; the other batches are looked at all the same
            watch.expect(engine, "render", "rows missing", 0, count)
            print(f"{engine} render: {error}", file=sys.stderr)
            return
        good = totals["pairs"]
        watch.expect(engine, "render", "rows missing", good + totals["quarantined"], count)
    trees = [{path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} for out in outs]
    differ = sum(trees[0].get(name) != trees[1].get(name) for name in trees[0].keys() | trees[1].keys())
    watch.expect(engine, "render", "bytes that differ", differ, 0)
    watch.run(engine, "verify --deep", *call, "verify", outs[0], "--deep", "--share", "1")
    said = [watch.run(engine, "pairs()", "-c", _PAIRS, recipe).split() for _ in range(2)]
    watch.expect(engine, "pairs()", "rows missing", int(said[0][0]) if said[0] else 0, good)
    watch.expect(engine, "pairs()", "bytes that differ", int(said[0] != said[1]), 0)


def main() -> int:
    """Measure; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutants", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--engines", nargs="+", default=["cpu", "dali"])
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    watch = Watch()
    for place, count in batches(given.mutants, given.seed, given.batch, given.folder):
        for engine in given.engines:
            examine(watch, place, count, engine)
    print(f"{given.mutants} mutants of {len(originals())} files, seed {given.seed}\n\n{watch.table()}")
    return int(any(row[name] for row in watch.counts.values() for name in _COUNTED))


if __name__ == "__main__":
    sys.exit(main())
