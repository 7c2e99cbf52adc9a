"""The head of a Ray cluster with a token on this machine, and commands that are given to it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.cluster_of_one import QUICK

WAIT_SECONDS = 600.0
_PORTS = (
    "dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export", "node-manager", "object-manager",
    "ray-client-server",
)  # fmt: skip
TOKEN = "a-token-of-this-test-and-no-secret-0123456789"


def free_port() -> int:
    """A port outside the range from which the system assigns free ports, since another Ray may be starting at the same time."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Head:
    """The head of a cluster on this machine, as an operator starts it."""

    def __init__(self, log: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="head-"))  # a short path: sockets lie in it
        port, dashboard = free_port(), free_port()
        self.url, self.address = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
        without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = {
            **without,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            **QUICK,
            "HOME": str(self.folder),  # no token of the user's own
        }
        words = [
            "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            "--num-cpus=6", "--disable-usage-stats", f"--object-store-memory={300 * 2**20}", f"--temp-dir={self.folder}",
            *(f"--{what}-port={free_port()}" for what in _PORTS),
        ]  # fmt: skip
        self._log = log.open("wb")
        script = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
        self._process = subprocess.Popen([*script, *words], env=self.environment, stdout=self._log, stderr=self._log)
        end = time.monotonic() + WAIT_SECONDS
        while not self._answers():
            assert time.monotonic() < end, log.read_text()
            assert self._process.poll() is None, log.read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        asked = urllib.request.Request(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
        try:
            with urllib.request.urlopen(asked, timeout=10):
                return True
        except OSError:
            return False

    def start(self, *words: Any, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pseudolabel", *map(str, words)],
            env={**self.environment, "RAY_API_SERVER_ADDRESS": self.url, **environment},
            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def call(self, *words: Any, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, cwd=cwd, **environment)
        out, err = process.communicate(timeout=WAIT_SECONDS)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    @property
    def alive(self) -> bool:
        """Whether the head still runs: it ends when one of Ray's processes ends."""
        return self._process.poll() is None

    def logs(self) -> str:
        """What the head and the jobs have printed so far."""
        return "\n".join(path.read_text() for path in (Path(self._log.name), *self.folder.rglob("job-driver-*.log")))

    def close(self) -> None:
        head = psutil.Process(self._process.pid)
        for process in (head, *head.children(recursive=True)):
            process.kill()
        self._process.wait(WAIT_SECONDS)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
