"""The errors that are shown to the user as one message, without a traceback."""


class ConfigError(ValueError):
    """A flag, a YAML key or a file the user named is wrong; the message says which and how to fix it."""


class RunError(RuntimeError):
    """A run that was set up rightly cannot go on; the message says why and what to do. Exit code 1."""


class SaveError(RunError):
    """A checkpoint or the final model could not be written; what was there before is still there."""
