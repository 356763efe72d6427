"""Activations recomputed in the backward pass: levels, and blocks that keep less by themselves."""
