"""Python processes of their own, for what may kill a process or needs a fresh one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(script: str, *arguments: str, inside: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter, to its end or its death; `inside` is a command that is to start it."""
    return subprocess.run(
        [*inside, sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
