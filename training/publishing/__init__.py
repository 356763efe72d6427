"""A final model for others: its card, README.md, and the hub."""
