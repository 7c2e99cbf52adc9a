"""Errors that end a run are explained, and a worker is set up before it begins."""

from __future__ import annotations

import pytest
import ray
import torch
from ray.train import TrainingFailedError

from pipeline.errors import RunError
from trainers.running.fit import _call, _error_for_user, _torch_state_kept

_KILLED = """9 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: caf9) was
22.37GB used / 23.54GB limit (0.950358)
OOM kill reason: Memory usage 24021504000B exceeded threshold of 24012687360B (95.0% of 25276514304B limit)
Considered workers: [ ...
"""


def test_memory_that_runs_out_is_said_in_a_line_with_what_to_change() -> None:
    said = _error_for_user(TrainingFailedError(_KILLED), "pretrain")
    assert isinstance(said, RunError)
    assert str(said).startswith("pretrain ran out of memory (22.37GB of 23.54GB were in use): lower training.batch")
    assert "\n" not in str(said)


def test_a_worker_computes_on_the_threads_that_the_command_decided_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    seen: list[int] = []
    with _torch_state_kept():
        for threads in (2, None):
            _call({"call": (lambda _: seen.append(torch.get_num_threads()), {}), "own_process": False, "threads": threads})
    assert seen == [2, 2]
    assert torch.get_num_threads() == 1
