"""The commands, a file a group; everything heavy is imported inside them, so that `--help` answers at once."""
