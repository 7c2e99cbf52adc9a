"""Pairs for training: the Ray Data plan, each rank's batches out of it, and `pairs()` without Ray."""
