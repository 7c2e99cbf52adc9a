"""The files of work in progress count the processes that were killed at it, and never one that is alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.rendering.in_flight import KEPT, InFlight
from tests.pipeline.children import ROOT

WORKER = """
import sys
from pathlib import Path
from pipeline.rendering.in_flight import InFlight
with InFlight(Path(sys.argv[1]), sys.argv[2]).at("piece"):
    print("at work", flush=True)
    sys.stdin.readline()
"""


def worker(folder: Path, run: str = "run") -> subprocess.Popen[str]:
    """A process that works on `piece` until it is told to stop, or killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), run], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    return process


def stop(process: subprocess.Popen[str], kill: bool) -> None:
    if kill:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate("\n" if not kill else None)
    assert process.returncode == (-signal.SIGKILL if kill else 0)


def test_work_that_ends_leaves_no_mark(tmp_path: Path) -> None:
    marks = InFlight(tmp_path / "deep" / "marks", "run")
    with marks.at("piece"):
        assert os.listdir(tmp_path / "deep" / "marks") == ["piece"]
    assert os.listdir(tmp_path / "deep" / "marks") == []
    assert marks.deaths("piece") == (0, 0)


def test_an_exception_is_no_death(tmp_path: Path) -> None:
    marks = InFlight(tmp_path, "run")
    with pytest.raises(KeyError), marks.at("piece"):
        raise KeyError
    assert marks.deaths("piece") == (0, 0)
    assert os.listdir(tmp_path) == []


def test_a_killed_process_is_counted_until_the_work_is_done(tmp_path: Path) -> None:
    marks = InFlight(tmp_path, "run")
    for deaths in (1, 2):
        stop(worker(tmp_path), kill=True)
        assert marks.deaths("piece") == (deaths, deaths)
        assert marks.deaths("piece") == (deaths, deaths), "asking changes nothing"
    assert marks.deaths("another piece") == (0, 0)
    with marks.at("piece"):
        assert marks.deaths("piece") == (0, 0), "somebody alive is at it"
    assert marks.deaths("piece") == (0, 0)
    assert os.listdir(tmp_path) == []


def test_two_at_the_same_piece_do_not_take_each_other_for_dead(tmp_path: Path) -> None:
    """Two runs of one recipe on one machine."""
    marks = InFlight(tmp_path, "run")
    other = worker(tmp_path)
    assert marks.deaths("piece") == (0, 0)
    with marks.at("piece"):
        assert marks.deaths("piece") == (0, 0)
    assert os.listdir(tmp_path) == ["piece"], "the other's mark stays while it works"
    stop(other, kill=False)
    assert os.listdir(tmp_path) == []
    assert marks.deaths("piece") == (0, 0)


def test_the_one_that_came_second_does_not_hide_the_death_of_the_first(tmp_path: Path) -> None:
    marks = InFlight(tmp_path, "run")
    first = worker(tmp_path)
    with marks.at("piece"):
        stop(first, kill=True)
    assert marks.deaths("piece") == (1, 1)


def test_deaths_are_counted_by_the_run_that_they_befell(tmp_path: Path) -> None:
    for run in ("first", "second", "second"):
        stop(worker(tmp_path, run), kill=True)
    assert InFlight(tmp_path, "second").deaths("piece") == (2, 3)
    assert InFlight(tmp_path, "third").deaths("piece") == (0, 3)


def test_a_death_of_long_ago_is_forgotten(tmp_path: Path) -> None:
    stop(worker(tmp_path), kill=True)
    long_ago = time.time() - KEPT - 60
    os.utime(tmp_path / "piece", (long_ago, long_ago))
    assert InFlight(tmp_path, "run").deaths("piece") == (0, 0)
    assert os.listdir(tmp_path) == []
