"""Renders a corpus to shards of pairs on disk, each exactly once, verifies them, and reads them back for training."""
