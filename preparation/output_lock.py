"""One run at a time in an output folder: a second one would remove what the first has aside."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from datasets import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


class OutputLock:
    """Held until release(), or until the process ends, however it ends. Raises DataError when it is taken."""

    def __init__(self, path: Path, output_dir: Path) -> None:
        self._path, self._file = path, os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            os.close(self._file)
            fix = "wait until it is done (more --num_workers are faster), or choose another --output_dir"
            raise DataError(output_dir, "another prepare_guidance.py is writing there", fix) from error

    def release(self) -> None:
        if fcntl is None:  # Windows removes no file that is open, and none that the next run has opened
            os.close(self._file)
            with contextlib.suppress(OSError):
                self._path.unlink()
        else:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
