"""One run at a time in an output folder: a second one would remove what the first has aside."""

import contextlib
import errno
from pathlib import Path

from filelock import FileLock, Timeout

from system.errors import DataError


class FolderLock:
    """Held until release(), or until the process ends, however it ends. Raises DataError when it is taken."""

    def __init__(
        self, folder: Path, lock_path: Path, *, holder: str, fix: str, wait_seconds: float = 0
    ) -> None:
        self._lock_path = lock_path
        # A lock by the file's mere existence would outlive a killed run, which is to be started again.
        self._lock = FileLock(lock_path, timeout=wait_seconds, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise DataError(folder, f"another {holder} is writing there", fix) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            # This file system knows no locks: the run goes on without.

    def release(self) -> None:
        """Let the next run in, and leave no file behind."""
        with contextlib.suppress(OSError):  # Windows removes no open file; filelock does it there
            self._lock_path.unlink()
        self._lock.release()
