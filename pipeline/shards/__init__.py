"""WebDataset shards: found, indexed, read by sample, packed and inspected, on any storage."""
