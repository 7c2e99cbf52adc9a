"""Checks what works on this machine, on a GPU if it has one:  `python -m benchmarks.gpu_check`."""
