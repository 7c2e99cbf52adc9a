"""What Ray says on the console: no lines of information, but every warning and error."""

from __future__ import annotations

import pytest

from tests.pipeline.children import run_python

_SAY = """
    import logging, os, sys
    if sys.argv[1]:
        os.environ["PSEUDOLABEL_DEBUG"] = sys.argv[1]
    import ray.data
    from ray.job_submission import JobSubmissionClient
    from pipeline.connection import quiet_console
    quiet_console()
    for name in ("ray.core", "ray.dashboard.modules.job.sdk", "ray.data.executor"):
        for level in ("info", "warning", "error"):
            getattr(logging.getLogger(name), level)(f"{name} {level}")
"""


@pytest.mark.parametrize(("debug", "said"), [("", {"warning", "error"}), ("1", {"info", "warning", "error"})])
def test_rays_lines_of_information_stay_off_the_console_and_its_warnings_do_not(debug: str, said: set[str]) -> None:
    done = run_python(_SAY, debug)
    assert done.returncode == 0, done.stderr
    for name in ("ray.core", "ray.dashboard.modules.job.sdk", "ray.data.executor"):
        assert {line.rpartition(" ")[2] for line in done.stderr.splitlines() if f"-- {name} " in line} == said
