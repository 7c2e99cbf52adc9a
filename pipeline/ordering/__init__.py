"""The order of training: which samples make up each batch, on any number of workers."""
