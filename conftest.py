"""Fixtures that every test may use, and how the tests share out among processes where several run at once."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores; before torch is imported

_LONGEST = ("training", "ray")
"""Groups that take longer than others, the longest first."""

pytest_plugins = ["tests.cluster_of_one", "tests.distributions", "tests.tiles", "tests.web"]


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` two processes run the tests that use Ray, one Ray each. Groups run first, the longest ahead."""
    for item in items:
        if "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("training" if "tests/trainers" in item.nodeid else "ray"))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    group = item.get_closest_marker("xdist_group")
    return _LONGEST.index(group.args[0]) if group and group.args[0] in _LONGEST else len(_LONGEST) + (group is None)
