"""Signals end a command with a hint, and a second one ends it at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.recipe import Recipe
from tests.cluster_of_one import QUICK
from tests.web import Serve

_COMMAND = """
import atexit, signal, sys, time
from cluster.commands.interrupts import interruptible
from cluster.jobs.command_result import CommandResult

def end():  # as Ray's own
    print("closing", flush=True)
    time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with interruptible(CommandResult("render"), "the same command goes on"):
        atexit.register(end)
        print("working", flush=True)
        time.sleep(600)
except KeyboardInterrupt as interrupt:
    print(interrupt, flush=True)
    sys.exit(130)
"""


_UNWINDING = """
import signal, sys, time
from cluster.commands.interrupts import interruptible
from cluster.jobs.command_result import recorded

signal.signal(signal.SIGINT, signal.default_int_handler)
with recorded("render", sys.argv[1]) as outcome, interruptible(outcome, "the same command goes on"):
    try:
        print("working", flush=True)
        time.sleep(600)
    finally:  # like libraries that close what they opened
        print("closing", flush=True)
        time.sleep(600)
"""


def test_a_second_interrupt_while_libraries_close_ends_the_command_with_the_same_line_and_result(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    words = [sys.executable, "-c", _UNWINDING, str(result)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        for line in ("working\n", "closing\n"):
            assert command.stdout.readline() == line
            command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=60)
    assert (command.returncode, said) == (130, "interrupted: the same command goes on\n")
    assert json.loads(result.read_text())["status"] == "interrupted"


def test_a_second_interrupt_ends_the_command_at_once_and_without_a_traceback() -> None:
    with subprocess.Popen([sys.executable, "-c", _COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "working\n"
        command.send_signal(signal.SIGINT)
        assert [command.stdout.readline(), command.stdout.readline()] == ["the same command goes on\n", "closing\n"]
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=60)
        assert (command.returncode, said) == (130, "")


class HeldBack(list[str]):
    """The log of a server that answers until a part of a shard is requested, and then blocks."""

    def __init__(self) -> None:
        self.flowing, self.held = threading.Event(), threading.Event()

    def append(self, line: str) -> None:
        super().append(line)
        if ".tar " in line:
            self.flowing.clear()
            self.held.set()


def marked(word: str) -> list[psutil.Process]:
    """The processes that still run and have this word in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TEST_MARK") == word and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", ["render", "pretrain"])
def test_two_interrupts_of_a_command_on_ray_end_in_one_line_and_leave_no_process(
    run_recipe: Callable[..., Recipe], tiles: Path, tmp_path: Path, serve: Serve, command: str
) -> None:
    log, mark = HeldBack(), uuid.uuid4().hex
    url = serve(tiles, log=log, flowing=log.flowing)
    shards = [f"{url}/{path.name}" for path in sorted(tiles.glob("*.tar"))]
    document = run_recipe({"corpus": {"shards": shards}}, workers=1).model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    words = [command, str(tmp_path / "recipe.yaml"), *(["--out", str(tmp_path / "out")] if command == "render" else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", "pseudolabel", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **QUICK, "TEST_MARK": mark},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    with process:
        assert log.held.wait(240), process.poll()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=240)
    assert process.returncode == 130, said
    assert "Traceback" not in said + out
    line = said.splitlines()[-1]
    assert (line.startswith("interrupted: "), "the same command goes on from" in line, said.count("interrupted")) == (
        True,
        True,
        1,
    )
    assert not psutil.wait_procs(marked(mark), timeout=60)[1]
