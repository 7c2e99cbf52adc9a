"""`python -m cluster` is the command `pseudolabel`."""

from pseudolabel.__main__ import main

main()
