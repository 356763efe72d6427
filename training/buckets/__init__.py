"""Clips of several shapes in one training: the sizes, the order of the batches, what the user is told."""
