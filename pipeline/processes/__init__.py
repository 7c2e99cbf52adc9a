"""Child processes that find our packages, and whose crash the parent survives."""
