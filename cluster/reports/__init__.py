"""What commands show: tables on the terminal, progress, and the report of a run."""
