"""The dry run: sizes, and the memory of a simulated step."""
