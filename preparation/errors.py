"""The error of a wrong setting, or of a library that is missing; datasets.DataError is for the material."""


class ConfigError(ValueError):
    """A flag is wrong, or what it needs is not installed; the message says which and how to fix it."""
