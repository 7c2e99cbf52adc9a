"""Only one process of a cluster does the same work at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.errors import UnderWay
from trainers.running.exclusive import exclusive


@pytest.mark.usefixtures("local_ray")
def test_a_work_is_done_once_at_a_time_and_free_again_after_its_end_good_or_bad() -> None:
    def work(within: str | None = None) -> None:
        with exclusive("pretrain into a"):
            if within:
                with exclusive(within):
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work("pretrain into b")
    with pytest.raises(UnderWay, match="pretrain into a is under way on this cluster already"):
        work("pretrain into a")
    work()


@pytest.mark.parametrize("module", ["trainers.running.exclusive", "trainers.running.run_log", "pipeline.rendering.quarantine"])
def test_an_actor_that_only_keeps_something_imports_neither_torch_nor_ray_data(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({{'torch', 'torchvision', 'ray.data', 'pyarrow'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
