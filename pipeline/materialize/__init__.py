"""Pairs on disk: a corpus of shards becomes a corpus of rendered shards, each exactly once, and can be read back for training."""
