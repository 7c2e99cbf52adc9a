"""What works on this machine, on a GPU where it has one: `python -m benchmarks.gpu_check`."""
