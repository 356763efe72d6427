"""The settings of a run: fields, parsing, checks."""
