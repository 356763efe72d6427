"""The error of a wrong setting: shown to the user as one message, without a traceback."""


class ConfigError(ValueError):
    """A flag, a YAML key or a file the user named is wrong; the message says which and how to fix it."""
