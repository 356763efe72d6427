"""The console, which ends no run: not by a character it does not know, a full disk, or a closed pipe."""

import contextlib
import os
import sys
from collections.abc import Iterator

# ValueError: the stream is closed. AttributeError: a console of another maker lacks the method.
FAULTS = (OSError, ValueError, AttributeError)


class SteadyStream:
    """A text stream that writes an unknown character as an escape, and loses what it cannot write."""

    def __init__(self, stream) -> None:
        self._stream = stream
        with contextlib.suppress(*FAULTS):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:  # a stream of another kind than Python's own
            self.write(text.encode("ascii", "backslashreplace").decode())
        except FAULTS:
            pass
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(*FAULTS):
            self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(*FAULTS):
            return self._stream.isatty()
        return False

    def settle(self) -> None:
        """Leave nothing to fail at: Python flushes at its exit, and ends with 120 where it cannot."""
        try:
            self._stream.flush()
        except FAULTS:
            with contextlib.suppress(*FAULTS):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


def steady_streams() -> None:
    """Make stdout and stderr of this process steady, for good; a worker process calls it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # pythonw, or a service: there is no console
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for good)
        if not isinstance(stream, SteadyStream):
            setattr(sys, name, SteadyStream(stream))


@contextlib.contextmanager
def steady_console() -> Iterator[None]:
    """Have steady streams in the block."""
    before = sys.stdout, sys.stderr
    steady_streams()
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, SteadyStream):
                stream.settle()
        sys.stdout, sys.stderr = before
