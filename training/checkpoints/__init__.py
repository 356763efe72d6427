"""Checkpoints: whole folders, saving, resuming."""
