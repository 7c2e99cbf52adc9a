"""How our plans share a machine with a network: Ray Data's settings, how often its scheduler polls, the priority of actors."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from pipeline.streaming.connection import quiet_data

if TYPE_CHECKING:
    from ray.data import DataContext

_PERIOD = 0.02
_NICER = 15  # what Ray adds for all its workers alike, if it is not told otherwise


def plan_settings(ordered: bool) -> DataContext:
    """A copy of the caller's settings of Ray Data, changed for a plan of ours, which shows its own progress.

    Args:
        ordered: whether blocks come in the order of their inputs.
    """
    import ray.data

    quiet_data()
    context = ray.data.DataContext.get_current().copy()  # the caller's own settings stay as they are
    context.execution_options.preserve_order = ordered
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, PollThrottle]  # type: ignore[list-item]
    context.memory_usage_poll_interval_s = None  # else Ray starts a thread for each task
    return context


def give_way() -> None:
    """Lower the priority of this process, an actor that decodes, so that a network on the same machine computes first.

    A network's threads wait for each other many times a step. Where an actor keeps one of them from its core, all wait.
    """
    os.nice(_NICER)


class PollThrottle:
    """An execution callback of Ray Data that keeps the polls of its scheduler at least 20 ms apart.

    The trainer is usually slower than the rendering: then every task of the plan has ended or waits for free buffer space. Ray's
    loop finds nothing to wait for, spins, and takes a CPU core from the training on the same machine. Each actor has several
    units or shards queued, which take longer than 20 ms, so the pause delays nothing.
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
