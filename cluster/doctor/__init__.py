"""`pseudolabel doctor`: what this machine can do, and whether its engines render correctly."""
