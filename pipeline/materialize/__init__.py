"""Makes something of each shard of a corpus, exactly once: pairs above all, which are verified and read back for training."""
