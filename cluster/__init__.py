"""The launch plane: the command line, what it shows while it works, and the reports that it leaves."""
