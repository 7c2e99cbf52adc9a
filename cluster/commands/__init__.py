"""The commands, one file for each group; they import heavy modules when they run, so that `--help` answers at once."""
