"""A run on Ray: does it fit the cluster, its folder, checkpoints, log and tracking."""
