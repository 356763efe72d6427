"""README.md of a final model: what whoever finds it on a disk or on the hub has to know."""
