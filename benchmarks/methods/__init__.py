"""Compares methods on CIFAR-10 at equal processor time, and with the same methods by lightly: `python -m benchmarks.methods`."""
