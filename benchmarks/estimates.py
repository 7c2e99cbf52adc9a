"""Compares the estimates of `--dry-run` with the run: time and memory, one right after the other.

    python -m benchmarks.estimates RECIPE... [--command pretrain] [--set training.epochs=5]

Each recipe's command is estimated, then run anew, in a process of its own each time. The machine should do nothing else. Exit
code 1 if an estimate is more than 30 % off.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from pipeline.recipe import load_recipe
from trainers.planning.peak_memory import PeakMemory

MOST = 0.3
COMMANDS = ("pretrain", "evaluate", "finetune")


def estimated(command: str, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """The estimate, in this process."""
    began = time.time()
    from trainers.planning import estimates

    found = getattr(estimates, f"estimate_{command}")(load_recipe(recipe, overrides), began)
    return {"seconds": found.seconds, "memory": found.memory, "measured": found.measured, "took": time.time() - began}


def ran(command: str, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """What the command takes, with all its processes."""
    words = [sys.executable, "-m", "pseudolabel", command, recipe, *(word for one in overrides for word in ("--set", one))]
    began = time.time()
    words += ["--fresh"] if command != "evaluate" else []
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process, PeakMemory(process.pid) as memory:
        code = process.wait()
    if code:
        raise SystemExit(f"{command} {recipe} ended with {code}")
    return {"seconds": time.time() - began, "memory": memory.bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--command", choices=COMMANDS, default="pretrain")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--estimate-only", action="store_true", help="print the estimate of one recipe as JSON")
    given = parser.parse_args()
    if given.estimate_only:
        print(json.dumps(estimated(given.command, given.recipes[0], given.set)))
        return
    worst = 0.0
    for recipe in given.recipes:
        words = [sys.executable, "-m", "benchmarks.estimates", recipe, "--command", given.command, "--estimate-only"]
        child = subprocess.run([*words, *(w for one in given.set for w in ("--set", one))], stdout=subprocess.PIPE, check=True)
        guess, real = json.loads(child.stdout.splitlines()[-1]), ran(given.command, recipe, given.set)
        off = {name: guess[name] / real[name] - 1 for name in ("seconds", "memory")}
        worst = max(worst, *map(abs, off.values()))
        print(
            f"{given.command} {recipe}: {guess['seconds']:.0f} s estimated, {real['seconds']:.0f} s run ({off['seconds']:+.0%}); "
            f"{guess['memory'] / 1e9:.2f} GB estimated, {real['memory'] / 1e9:.2f} GB run ({off['memory']:+.0%}); "
            f"{guess['measured']}; the estimate took {guess['took']:.0f} s",
            flush=True,
        )
    sys.exit(worst > MOST)


if __name__ == "__main__":
    main()
