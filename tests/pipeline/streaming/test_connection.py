"""A cluster that is not there is refused in seconds, a long TMPDIR stops no run, and Ray's information stays off the console."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.doctor.checks import _ray as ray_words
from pipeline.errors import UserError
from pipeline.streaming.connection import _check_answers, _short_folder, join_cluster, let_threads_sleep
from tests.pipeline.children import run_python


@pytest.fixture
def closed_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_at_which_nobody_listens_is_refused(closed_port: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = form.format(closed_port)
    with pytest.raises(UserError, match=rf"the cluster {address} \(RAY_ADDRESS\) cannot be reached.*: Connection refused\. "):
        join_cluster(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert "Connection refused. Start it, correct the address, or unset RAY_ADDRESS" in ray_words()


def test_auto_without_a_cluster_or_with_one_that_died_is_refused(
    closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", set)  # others may use this machine
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"the cluster auto \(RAY_ADDRESS\) cannot be found: no Ray runs on this machine"):
        join_cluster("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{closed_port}")
    with pytest.raises(UserError, match=rf"the cluster auto \(RAY_ADDRESS\) cannot be reached at [\d.]+:{closed_port}: "):
        join_cluster("auto")


def test_an_address_that_answers_is_left_to_ray() -> None:
    with socket.create_server(("", 0)) as listening:
        _check_answers(f"127.0.0.1:{listening.getsockname()[1]}")
    _check_answers("anyscale://somewhere")


def test_an_address_of_no_known_form_is_refused() -> None:
    with pytest.raises(UserError, match=r"the cluster head \(RAY_ADDRESS\) has no address that Ray can read"):
        join_cluster("head")


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_replaced_and_said(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/scratch")
    assert _short_folder() is None
    monkeypatch.setenv(name, "/scratch/" + "é" * 45)
    assert _short_folder() == "/tmp/ray"
    assert capsys.readouterr().err.startswith(f"warning: {name} is 99 bytes long, and Ray's sockets leave room for ")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=f"{name} is 99 bytes long, .*: set RAY_TMPDIR to a folder with a shorter path"):
        _short_folder()


def test_threads_sleep_while_they_wait_before_torch_is_loaded_unless_the_caller_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    script = (
        "import os, sys, cluster.cli as cli\n"
        "cli.app = lambda **_: print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout == "passive False\n"


_SAY = """
    import logging, os, sys
    if sys.argv[1]:
        os.environ["PSEUDOLABEL_DEBUG"] = sys.argv[1]
    import ray.data
    from ray.job_submission import JobSubmissionClient
    from pipeline.streaming.connection import quiet_console
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
