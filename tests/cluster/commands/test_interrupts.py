"""Signals end a command with a hint, and a second one ends it at once."""

from __future__ import annotations

import signal
import subprocess
import sys

_COMMAND = """
import atexit, signal, sys, time
from cluster.commands.interrupts import interruptible

def end():  # as Ray's own
    print("closing", flush=True)
    time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with interruptible("the same command goes on"):
        atexit.register(end)
        print("working", flush=True)
        time.sleep(600)
except KeyboardInterrupt as interrupt:
    print(interrupt, flush=True)
    sys.exit(130)
"""


def test_a_second_interrupt_ends_the_command_at_once_and_without_a_traceback() -> None:
    with subprocess.Popen([sys.executable, "-c", _COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "working\n"
        command.send_signal(signal.SIGINT)
        assert [command.stdout.readline(), command.stdout.readline()] == ["the same command goes on\n", "closing\n"]
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=60)
        assert (command.returncode, said) == (130, "")
