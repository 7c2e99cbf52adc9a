"""A run on Ray: its resources, where its workers meet, its folder, checkpoints, log and tracking."""
