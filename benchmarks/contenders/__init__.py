"""The contenders, one file each: `batches(job)` gives endless batches, `PASSES` says whether it makes one pass for each task."""
