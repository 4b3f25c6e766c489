"""Training: settings, batches, the objective, the loop, and the folder of a run."""
