"""Clips of an evaluation: sources of frames, the truth, and the pairs of truth and prediction."""
