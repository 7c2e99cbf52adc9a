"""The command `pseudolabel`, also as `python -m pseudolabel`; what it needs is found wherever it is called."""

from cluster.cli import main

if __name__ == "__main__":
    main()
