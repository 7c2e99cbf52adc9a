"""Fixtures that every test may use."""

pytest_plugins = ["tests.cluster_of_one", "tests.tiles"]
