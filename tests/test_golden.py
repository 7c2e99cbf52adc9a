"""Golden values: draws, orders, canonical recipes and drawn parameters are those of earlier versions, on every processor.

    python -m tests.test_golden

writes `golden.json` anew; the file says when that is allowed. Pixels are not in it: decoders differ between machines.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.draws import Draws, hash64, permutation, sample_id
from pipeline.ordering.mixture import Portion
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import load_recipe
from pipeline.tasks import registry

FILE = Path(__file__).with_name("golden.json")
RECIPES = Path(__file__).parents[1] / "recipes"
GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {}
IDS = np.array([sample_id(f"golden/{n}") for n in range(8)], np.uint64)
SIZE, SEED = 96, 7


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of named arrays: kind, shape and values, floats as multiples of 1e-6, since their last bits differ by processor."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        floats = array.dtype.kind == "f"
        values = np.round(array.astype(np.float64) * 1e6) if floats else array
        total.update(json.dumps([name, "float" if floats else "whole", array.shape]).encode())
        total.update(values.astype("<i8" if array.dtype != np.uint64 else "<u8").tobytes())
    return total.hexdigest()


def draws() -> dict[str, str]:
    """Digests of each kind of draw, in two streams, two epochs and for two seeds."""
    found = {"hash64": digest({"n": np.array([hash64("a", 1), sample_id("a/b")], np.uint64)})}
    found["permutation"] = digest({str(n): permutation(n, "golden", SEED) for n in (1, 2, 1001)})
    for seed, epoch, name in ((SEED, 0, "crop"), (SEED, 1, "crop"), (SEED, 0, "jigsaw"), (2**62, 0, "crop")):
        stream = Draws(seed, epoch, IDS).stream(name)
        found[f"stream {name}, seed {seed}, epoch {epoch}"] = digest(
            {
                "words": stream.words("w", 5),
                "uniform": stream.uniform("u", -2, 3, (2, 3)),
                "integers": stream.integers("i", 1000, (3,)),
                "limits": stream.integers("l", np.arange(1, 4), (3,)),
            }
        )
    return found


def order(portions: tuple[Portion, ...] = ()) -> dict[str, str]:
    """Digest of all batches of each of two epochs, over four shards."""
    schedule = Schedule(np.array([100, 37, 0, 64]), Geometry(16, 8, 4, 3), SEED, 2, "wrap", portions=portions)
    found = {}
    for epoch in range(2):
        plan = schedule.plan(epoch)
        batches = [plan.batch(step) for step in range(plan.steps)]
        parts = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in ("shards", "rows", "again")}
        found[f"epoch {epoch}"] = digest(parts)
    return found


def recipes() -> dict[str, str]:
    """The canonical identity of each of the project's recipes."""
    return {path.name: load_recipe(path).digest() for path in sorted(RECIPES.glob("*.yaml"))}


def tasks() -> dict[str, str]:
    """Digests of what each task of this repository draws for the ids with its default parameters."""
    own = {name: cls for name, cls in registry().items() if cls.__module__.startswith("pipeline.tasks.")}
    return {name: digest(cls().draw(Draws(SEED, 1, IDS).stream(name), SIZE)) for name, cls in own.items()}


def made() -> dict[str, dict[str, str]]:
    """All that `golden.json` holds, made anew."""
    return {
        "draws": draws(),
        "order": order(),
        "order of a mixture": order((Portion("first", 1.0, 2), Portion("second", 2.5, 2))),
        "recipes": recipes(),
        "drawn parameters": tasks(),
    }


@pytest.mark.parametrize("part", made())
def test_values_are_those_of_earlier_versions(part: str) -> None:
    assert made()[part] == GOLDEN[part], f"{FILE.name} says when these may change: {GOLDEN['renewal']}"


@pytest.mark.parametrize("shift", [2e-6, -2e-6])
def test_a_digest_sees_what_is_no_rounding_error(shift: float) -> None:
    values = np.array([0.25, 1.5])
    assert digest({"a": values}) == digest({"a": values + shift / 1e6}) == digest({"a": values.astype(np.float32)})
    assert len({digest({"a": values}), digest({"a": values + shift}), digest({"b": values}), digest({"a": values[None]})}) == 4


if __name__ == "__main__":
    about = (
        "Written by `python -m tests.test_golden`. A line may be added for what is new. A changed line means that finished runs "
        "cannot be repeated or continued: allowed only where CHANGELOG.md announces it."
    )
    FILE.write_text(json.dumps({"renewal": about, **made()}, indent=1) + "\n")
