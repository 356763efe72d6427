"""The errors that a user sees as one message, without a traceback. UserError: exit code 2; RunError: 1."""

import os

_WORKER_PREFIX = "Caught DataError in DataLoader worker"


class UserError(ValueError):
    """What the user gave is wrong; the message says what was found, what was expected and how to fix it."""


class ConfigError(UserError):
    """A flag, a YAML key or a file that the user named is wrong, or a package for it is not installed."""


class ModelError(UserError):
    """A model cannot be built, loaded or called as asked."""


class DataError(UserError):
    """A fault in the user's data, as one line: the path, what is wrong, what to do.

    A DataLoader re-raises a worker's error with the worker's whole traceback as the message; only the line
    that helps the user is kept of it.
    """

    def __init__(self, path: str | os.PathLike, problem: str = "", fix: str = "") -> None:
        path = os.fspath(path)
        if path.startswith(_WORKER_PREFIX):
            path = path.rsplit("DataError: ", 1)[-1].strip()
        problem = " ".join(problem.splitlines())  # libraries' own messages may have several
        self.path, self.problem, self.fix = path, problem, fix
        super().__init__("; ".join(part for part in (f"{path}: {problem}" if problem else path, fix) if part))

    def __reduce__(self) -> tuple:
        return DataError, (self.path, self.problem, self.fix)


class RunError(RuntimeError):
    """A run that was set up rightly cannot go on; the message says why and what to do."""


class Cancelled(Exception):
    """Somebody has called off a job that is under way: no fault of anything."""


class SaveError(RunError):
    """A checkpoint or the final model could not be written; what was there before is still there."""
