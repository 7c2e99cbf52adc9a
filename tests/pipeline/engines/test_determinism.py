"""A pair is a function of its image and what was drawn: byte-identical whatever batch, threads, order and process."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pipeline.draws import Draws
from pipeline.engines import Request
from pipeline.engines.cpu import CpuEngine
from pipeline.tasks import Task, registry
from tests.pipeline.children import run_python
from tests.pipeline.made_images import FRAMES, encode, engine, good, photo, request, turned, unlike

SIZE = 48
COUNT = 64


def tasks() -> dict[str, Task]:
    return {name: task() for name, task in unlike(registry()).items()}


def batch() -> Request:
    """A request of clips from files of many kinds, with their crops and all that the tasks draw."""
    kinds = [file for name, file in good().items() if "pixel" not in name]
    files = [*kinds, *(turned("JPEG", orientation) for orientation in range(1, 9))]
    files = [files[i % len(files)] for i in range(COUNT * FRAMES)]
    draws = Draws(11, 2, np.arange(COUNT, dtype=np.uint64) * 1001)
    rng = Draws(11, 2, np.arange(COUNT * FRAMES, dtype=np.uint64)).stream("here")
    windows = np.stack(
        [rng.integers("y", 40), rng.integers("x", 40), 30 + rng.integers("h", 60), 30 + rng.integers("w", 60)], axis=1
    )
    drawn = {name: task.draw(draws.stream(name), SIZE) for name, task in tasks().items()}
    return request(files, windows, rng.uniform("flip") < 0.5, drawn, FRAMES, tasks(), SIZE)


def in_parts(name: str, asked: Request, parts: list[np.ndarray], threads: int, most: int = 64) -> dict[str, np.ndarray]:
    """The columns of a request that is rendered in parts, put back in its order."""
    machine = engine(name, tasks(), SIZE, threads, most, FRAMES)
    columns: dict[str, np.ndarray] = {}
    for rows in parts:
        found, failures = machine.run(asked.take(rows))
        assert not failures
        for column, values in found.items():
            columns.setdefault(column, np.zeros((COUNT, *values.shape[1:]), np.uint8))[rows] = values
    return columns


def digest(columns: dict[str, np.ndarray]) -> str:
    joined = b"".join(name.encode() + np.ascontiguousarray(values).tobytes() for name, values in sorted(columns.items()))
    return hashlib.sha256(joined).hexdigest()


@pytest.mark.parametrize("name", ["cpu", "dali"])
def test_pixels_do_not_depend_on_batch_threads_or_order(name: str) -> None:
    asked = batch()
    whole = np.arange(COUNT)
    expected = in_parts(name, asked, [whole], threads=1)
    assert set(expected) == {"image", "frames", "swav.small", *(f"{task}.input" for task in tasks())}
    shuffled = np.random.default_rng(0).permutation(COUNT)
    for threads, size, order in ((1, 1, shuffled), (2, 3, whole), (1, 7, shuffled), (2, 64, shuffled)):
        parts = [order[start : start + size] for start in range(0, COUNT, size)]
        found = in_parts(name, asked, parts, threads)
        for column, values in expected.items():
            assert np.array_equal(found[column], values), (column, threads, size)


def test_dali_s_own_limit_on_the_batch_shows_nowhere() -> None:
    asked = batch()
    whole = [np.arange(COUNT)]
    assert digest(in_parts("dali", asked, whole, 1, most=5)) == digest(in_parts("dali", asked, whole, 1))


@pytest.mark.parametrize("name", ["cpu", "dali"])
def test_another_process_makes_the_same_pixels(name: str) -> None:
    script = """
        import sys
        import numpy as np
        from tests.pipeline.engines.test_determinism import COUNT, batch, digest, in_parts
        print(digest(in_parts(sys.argv[1], batch(), [np.arange(COUNT)[::-1]], threads=2)))
    """
    # Memory that was not written to shows as other bytes in the child than here.
    done = run_python(script, name, MALLOC_PERTURB_="165", PYTHONHASHSEED="3")
    assert done.stdout.strip() == digest(in_parts(name, batch(), [np.arange(COUNT)], threads=1)), done.stderr


@pytest.mark.parametrize("name", ["cpu", "dali"])
def test_bad_neighbours_change_nobody_s_pixels(name: str) -> None:
    plain = encode(photo(), "BMP")
    bad = [plain[: len(plain) - cut] for cut in (1, 1000, 40_000)]
    files = [good()["jpeg"], bad[0], good()["png"], bad[1], bad[2], good()["webp"]]
    machine = engine(name, size=SIZE)
    columns, failures = machine.run(request(files))
    assert set(failures) == {1, 3, 4}
    assert all("could not be decoded" in reason for reason in failures.values())
    for row in (0, 2, 5):
        alone, none = machine.run(request([files[row]]))
        assert not none
        assert np.array_equal(columns["image"][row], alone["image"][0])


@pytest.mark.parametrize("name", ["cpu", "dali"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_batch_of_nothing_but_bad_files_still_has_its_columns(name: str, count: int) -> None:
    bad = encode(photo(), "BMP")[:-1000]
    asked = request([bad] * count)
    columns, failures = engine(name, size=SIZE).run(asked)
    assert set(failures) == set(range(count))
    assert columns["image"].shape == (count, SIZE, SIZE, 3)
    assert columns["image"].dtype == np.uint8


@pytest.mark.parametrize("name", ["cpu", "dali"])
def test_a_window_outside_the_photo_is_that_photo_s_failure_alone(name: str) -> None:
    """No header that passed the check gives such a window; if one did, one sample would be lost, not the run."""
    asked = request([good()["jpeg"], good()["png"], good()["webp"]])
    asked.windows[1] = [100, 100, 90, 90]
    columns, failures = engine(name, size=SIZE).run(asked)
    assert set(failures) == {1}
    alone, _ = engine(name, size=SIZE).run(request([good()["webp"]]))
    assert np.array_equal(columns["image"][2], alone["image"][0])


@pytest.mark.parametrize("threads", [1, 2])
def test_small_images_that_are_cut_together_are_those_that_are_cut_alone(threads: int) -> None:
    kinds = [file for name, file in good().items() if "pixel" not in name]
    files = [*kinds, *(turned("JPEG", orientation) for orientation in range(1, 9)), encode(photo(), "BMP")[:-9000]] * 3
    rng = np.random.default_rng(0)
    sides = rng.choice([20, 41, 60], (len(files), 2))
    asked = request(files, np.concatenate([rng.integers(0, 30, (len(files), 2)), sides], axis=1), rng.random(len(files)) < 0.5)
    outside = 4
    asked.windows[outside] = [100, 100, 90, 90]
    machine = CpuEngine({}, SIZE, threads)
    assert machine._together(asked) > 1
    columns, failures = machine.run(asked)
    assert outside in failures
    for row in range(len(files)):
        one = asked.take(np.array([row]))
        assert machine._together(one) == 1
        alone, failed = machine.run(one)
        assert (row in failures) == bool(failed)
        assert failed or np.array_equal(columns["image"][row], alone["image"][0]), row
