"""The one exception of this package that is meant for users."""


class ModelError(ValueError):
    """A model cannot be built, loaded or called as asked: names what was found, what was expected, what to
    do."""
