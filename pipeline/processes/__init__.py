"""Child processes that find our packages and whose death can be survived."""
