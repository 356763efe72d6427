"""The check of a data folder and its report."""
