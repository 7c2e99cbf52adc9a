"""Limits how often Ray Data's scheduler polls its tasks, so that it does not spin."""

from __future__ import annotations

import time
from typing import Any

_PERIOD = 0.02


class PollThrottle:
    """An execution callback of Ray Data that keeps the polls of its scheduler at least 20 ms apart.

    The trainer is usually slower than the rendering: then every task of the plan has ended or waits for free buffer space. Ray's
    loop finds nothing to wait for, spins, and takes a CPU core from the training on the same machine. A unit takes longer than
    20 ms to render, and each actor always has some queued, so the pause delays nothing.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to do."""

    def on_execution_step(self, executor: Any) -> None:
        """Sleep for the rest of the 20 ms; Ray calls this after each poll."""
        time.sleep(max(0.0, self._last + _PERIOD - time.perf_counter()))
        self._last = time.perf_counter()

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to do."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to do."""
