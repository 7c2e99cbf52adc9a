"""A run on Ray: the resources that it needs, its folder, checkpoints, log and tracking."""
