"""Fixtures that every test may use, and how the tests share out among processes where several run at once."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores; before torch is imported

pytest_plugins = ["tests.cluster_of_one", "tests.distributions", "tests.tiles", "tests.web"]


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` all tests that use Ray share a process and its Ray; groups, being long, go first."""
    for item in items:
        if "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
