"""Pretrained backbones outside of runs: loaded in Python by the run's folder, and exported to other libraries' formats."""
