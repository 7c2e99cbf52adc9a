"""Renders under twenty kills each, and compares the output byte for byte with an undisturbed render.

    python -m benchmarks.kill_storm FOLDER [--seeds 1 2 3]

FOLDER is emptied and used. Prints a row a seed: what was killed, how often drivers ended for another reason, how many files
differ, and the seconds. Exit code 1 if a driver ended by itself or a byte differs. Run it from the root of a checkout: it uses
code of the test suite.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from pipeline.materialize.run import render
from pipeline.recipe import load_recipe
from tests.pipeline.materialize.storm import prepare, weather


def tree(root: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def main() -> int:
    """Measure; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    recipe = prepare(given.folder)
    render(load_recipe(recipe), str(given.folder / "calm"), here=True)
    calm = tree(given.folder / "calm")
    print(f"{len(calm)} files in an undisturbed render")
    print("| seed | actors | raylets | SIGKILL | SIGTERM | renders | other ends | files that differ | seconds |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    bad = False
    for seed in given.seeds:
        started = time.perf_counter()
        (folder := given.folder / f"seed-{seed}").mkdir()
        outcome = weather(recipe, folder, seed)
        found = [tree(one) for one in outcome.folders]
        differ = sum(calm.get(name) != there.get(name) for there in found for name in calm.keys() | there.keys())
        kills = " | ".join(str(outcome.killed[victim]) for victim in ("actor", "raylet", "SIGKILL", "SIGTERM"))
        ends = "; ".join(outcome.surprises) or "0"
        seconds = time.perf_counter() - started
        print(f"| {seed} | {kills} | {len(found)} | {ends} | {differ} | {seconds:.0f} |", flush=True)
        bad = bad or bool(differ or outcome.surprises)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
