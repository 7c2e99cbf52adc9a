"""The training loop and its parts: gradients, optimizer, each rank's stream of batches, the curves of a run."""
