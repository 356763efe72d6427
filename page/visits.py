"""What a visit to the page leaves on the disk, for as long as it lasts; and the one job at a time."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from system.errors import Cancelled

PATIENCE_SECONDS = 4.0  # at the end of the process, with a step


class Visits:
    """The folder of each visit, the uploads that it has chosen, and whether its job shall stop.

    Equal uploads of two visits are one file (Gradio names them by their content): it goes with the last.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock, self._one_job = threading.Lock(), threading.Lock()
        self._folders: dict[str, Path] = {}
        self._uploads: dict[str, set[Path]] = {}
        self._stops: dict[str, threading.Event] = {}  # of the job that a visit has asked for last
        self._working, self._left = "", False  # the visit whose job runs; whether it is over

    def folder(self, visit: str) -> Path:
        """Return the folder of a visit, whose name nobody can guess."""
        with self._lock:
            if visit not in self._folders:
                self._folders[visit] = Path(tempfile.mkdtemp(dir=self.root))
            return self._folders[visit]

    def keep(self, visit: str, upload: Path) -> None:
        """Note that a visit has chosen an upload."""
        with self._lock:
            self._uploads.setdefault(visit, set()).add(upload)

    @contextmanager
    def job(self, visit: str) -> Iterator[threading.Event]:
        """Yield, when no other job runs, what is set when this one shall stop. Raises Cancelled."""
        stop = self._stops[visit] = threading.Event()
        with self._one_job:
            if stop.is_set():
                raise Cancelled
            with self._lock:
                self._working, self._left = visit, False
            try:
                yield stop
            finally:
                with self._lock:
                    if self._left:
                        self._remove(visit)
                    self._working = ""

    def stop(self, visit: str) -> None:
        """Let the visit's job stop; it does so within a step."""
        if (stop := self._stops.get(visit)) is not None:
            stop.set()

    def leave(self, visit: str) -> None:
        """Stop the visit's job, and remove the visit's files, where the job runs when it has stopped."""
        self.stop(visit)
        with self._lock:
            if self._working == visit:
                self._left = True
            else:
                self._remove(visit)

    def end(self) -> None:
        """Stop all jobs; return when they have stopped, or a step takes too long to wait for."""
        for stop in list(self._stops.values()):
            stop.set()
        if self._one_job.acquire(timeout=PATIENCE_SECONDS):
            self._one_job.release()

    def _remove(self, visit: str) -> None:
        self._stops.pop(visit, None)
        if visit in self._folders:
            shutil.rmtree(self._folders.pop(visit), ignore_errors=True)
        uploads = self._uploads.pop(visit, set())
        for upload in uploads.difference(*self._uploads.values()):
            upload.unlink(missing_ok=True)
