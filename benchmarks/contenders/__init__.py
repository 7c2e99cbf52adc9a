"""The contenders, one file each: `batches(job)` gives endless batches, `PASSES` says whether its users make a pass a task."""
