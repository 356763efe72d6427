"""The one error that users see when their data is at fault."""

from __future__ import annotations

import os

_WORKER_PREFIX = "Caught DataError in DataLoader worker"


class DataError(ValueError):
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
