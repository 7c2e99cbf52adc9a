"""Runs a job under twenty kills each, and compares what it writes byte for byte with an undisturbed run.

    python -m benchmarks.kill_storm FOLDER [--of render] [--seeds 1 2 3] [--images 2400]

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
from tests.folders import bytes_below
from tests.pipeline.materialize.storm import VICTIMS, prepare, weather
from tests.trainers.labelling.stormy import PAUSE, WORKS, stormy_work


def main() -> int:
    """Measure; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--of", choices=("render", *WORKS), default="render", help="the command")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--images", type=int, default=2400, help="about 40 in a shard")
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    if given.of == "render":
        recipe, undisturbed = prepare(given.folder, given.images), given.folder / "calm"
        render(load_recipe(recipe), str(undisturbed), here=True)
        words, pause = ["render", str(recipe)], (0.1, 1.2)
    else:
        (words, undisturbed), pause = stormy_work(given.of, given.folder, given.images), PAUSE
    calm = bytes_below(undisturbed)
    print(f"{len(calm)} files in an undisturbed run of {given.of}")
    print("| seed | actors | raylets | SIGKILL | SIGTERM | runs | other ends | files that differ | seconds |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    bad = False
    for seed in given.seeds:
        started = time.perf_counter()
        (folder := given.folder / f"seed-{seed}").mkdir()
        outcome = weather(words, folder, seed, VICTIMS, pause)
        found = [bytes_below(one) for one in outcome.folders]
        differ = sum(calm.get(name) != there.get(name) for there in found for name in calm.keys() | there.keys())
        kills = " | ".join(str(outcome.killed[victim]) for victim in ("actor", "raylet", "SIGKILL", "SIGTERM"))
        ends = "; ".join(outcome.surprises) or "0"
        seconds = time.perf_counter() - started
        print(f"| {seed} | {kills} | {len(found)} | {ends} | {differ} | {seconds:.0f} |", flush=True)
        bad = bad or bool(differ or outcome.surprises)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
