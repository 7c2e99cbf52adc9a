"""Jobs of a Ray cluster, and the result file that each command leaves for orchestrators."""
