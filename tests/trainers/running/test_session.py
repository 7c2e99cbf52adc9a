"""Connecting to Ray loads what the run needs, and no more."""

from __future__ import annotations

from tests.pipeline.children import run_python


def test_a_render_connects_without_torch() -> None:
    """It takes three seconds to load, and renders have no network."""
    done = run_python("import sys, trainers.running.session; print('torch' in sys.modules, 'ray' in sys.modules)")
    assert done.stdout == "False False\n", done.stderr
