"""Runs Python scripts in new processes, for tests that may crash a process or need a fresh one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(script: str, *arguments: str, inside: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter until it ends or crashes; `inside` is a command that starts the interpreter."""
    return subprocess.run(
        [*inside, sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
