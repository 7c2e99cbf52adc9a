"""The command `pseudolabel`, also as `python -m pseudolabel`; it finds its packages wherever it is called."""

from cluster.cli import main

if __name__ == "__main__":
    main()
