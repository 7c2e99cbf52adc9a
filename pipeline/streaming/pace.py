"""Keeps Ray Data's scheduler from spinning: it is asked to look no more often than there can be something to see."""

from __future__ import annotations

import time
from typing import Any

_PERIOD = 0.02


class PollThrottle:
    """An execution callback of Ray Data that lets no two looks of its scheduler begin within 20 ms of each other.

    Where the trainer is slower than the rendering, which is the rule, every task of the plan waits for room or is over. Ray's
    loop has nothing to wait for then, and without this takes a processor from the training beside it. A unit takes longer to
    render than that, and some are always queued at each actor, so nothing is held up.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to do."""

    def on_execution_step(self, executor: Any) -> None:
        """Called after each look."""
        time.sleep(max(0.0, self._last + _PERIOD - time.perf_counter()))
        self._last = time.perf_counter()

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to do."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to do."""
