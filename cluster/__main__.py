"""`python -m cluster` is the command `pseudolabel`."""

from cluster.cli import main

main()
