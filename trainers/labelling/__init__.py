"""Labels that a model makes: features of every image of a corpus, and clusters of these."""
