"""Waits that have an end: a line for the user after a minute, a RunError after half an hour.

Waiting is counted in turns, not by a clock: a laptop asleep or a stopped job has waited for nothing.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from system.errors import RunError

NOTE_SECONDS = 60.0
MOST_SECONDS = 1800.0
TURN_SECONDS = 1.0
DRIVE_FIX = "see that its drive answers, then start again"


class Patience:
    """How long nothing has come, of what may not come at all: a drive may be gone, a process may hang.

    fix: what to do about it, for the user.
    """

    def __init__(
        self, note_seconds: float = NOTE_SECONDS, most_seconds: float = MOST_SECONDS, *, fix: str = DRIVE_FIX
    ) -> None:
        self.note_seconds, self.most_seconds, self.fix = note_seconds, most_seconds, fix
        self.waited = 0.0

    def restart(self) -> None:
        """Something came."""
        self.waited = 0.0

    def waited_in_vain(self, what: Callable[[], str], seconds: float = TURN_SECONDS) -> None:
        """Count one turn. Raises RunError after the last; `what` says for what is waited."""
        before, self.waited = self.waited, self.waited + seconds
        if self.waited >= self.most_seconds:
            minutes = f"{self.most_seconds / 60:.0f} minutes"
            raise RunError(f"waited {minutes} in vain for {what()}: {self.fix}")
        if before < self.note_seconds <= self.waited:
            say(f"waiting for {what()}, {self.waited:.0f} s so far")


def say(line: str) -> None:
    """Print a line, above a progress bar."""
    tqdm.write(line, file=sys.stderr)


@contextmanager
def bounded(what: Callable[[], str], patience: Patience | None = None) -> Iterator[None]:
    """Bound a block that waits where Python cannot look: at the end of patience the process leaves with 1."""
    patience, is_over = patience or Patience(), threading.Event()

    def watch() -> None:
        while not is_over.wait(TURN_SECONDS):
            try:
                patience.waited_in_vain(what)
            except RunError as error:
                os.write(2, f"error: {error}\n".encode(errors="backslashreplace"))
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
