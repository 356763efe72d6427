"""A request to stop: SIGTERM or Ctrl-C. It ends the work at once, or is noted while a step is finished.

Python's own handlers wait for the main thread, which may wait for a process or a drive that is no more; so a
thread watches too. What waits for others has GRACE_SECONDS after a request, then the process leaves.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST_SECONDS = 0.1
GRACE_SECONDS = 5.0


class Stopped(BaseException):
    """A request to stop was followed before the training began, or while it waited for its data.

    As KeyboardInterrupt, it is no Exception: what takes those for a fault of a file must let it pass.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(signal_number, message)
        self.signal_number, self.message = signal_number, message


class _Watch:
    """The handlers of both signals in a `with` block, and the thread that leaves where the main one cannot.

    A second signal leaves at once. Signals less than SAME_REQUEST_SECONDS apart are one: a cluster sends them
    to all processes, and a launcher that gets one hands it on.
    """

    def __init__(self, last_words: Callable[[], str] = str):
        self.signal_number, self.last_words = 0, last_words
        # Since when, and how many seconds after a request; None: what the main thread does, ends.
        self._wait: tuple[float, float] | None = None
        self._previous = {}

    def __enter__(self) -> "_Watch":
        for number in STOP_SIGNALS:
            # Ctrl-C that is ignored from the start, as in a script's background jobs, is not meant for us.
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        self._incoming, self._outgoing = socket.socketpair()
        self._outgoing.setblocking(False)
        self._previous_descriptor = signal.set_wakeup_fd(self._outgoing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._incoming,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        signal.set_wakeup_fd(self._previous_descriptor)
        # Ends the thread, also where a process that was forked meanwhile has the socket still.
        self._outgoing.shutdown(socket.SHUT_RDWR)
        self._outgoing.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.signal_number = self.signal_number or number

    @contextlib.contextmanager
    def waiting(self, last_words: Callable[[], str], seconds: float | None = None) -> Iterator[None]:
        """Say that the block waits for what may not come; `last_words` are said where the process leaves.

        seconds: after a request the block has so many; None: GRACE_SECONDS.
        """
        before = self.last_words, self._wait
        seconds = GRACE_SECONDS if seconds is None else seconds
        self.last_words, self._wait = last_words, (time.monotonic(), seconds)
        try:
            yield
        finally:
            self.last_words, self._wait = before

    def _watch(self, incoming: socket.socket) -> None:
        first, first_number = None, 0
        with incoming:
            while True:
                with contextlib.suppress(TimeoutError):
                    if not (received := incoming.recv(1)):
                        return
                    if received[0] in STOP_SIGNALS:
                        now, first_number = time.monotonic(), first_number or received[0]
                        first = first or now
                        if now - first > SAME_REQUEST_SECONDS:
                            os._exit(128 + received[0])
                        incoming.settimeout(0.2)
                if first is not None:
                    self._leave_after(first, first_number)

    def _leave_after(self, first: float, number: int) -> None:
        """Leave where the wait has lasted too long since the first signal."""
        wait = self._wait  # the main thread may end it now
        if wait is None or time.monotonic() - max(first, wait[0]) <= wait[1]:
            return
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self.last_words()}\n".encode(errors="backslashreplace"))
        os._exit(128 + number)


class StopAtOnce(_Watch):
    """SIGTERM raises Stopped in the main thread, and Ctrl-C KeyboardInterrupt, as it does by itself."""

    def __enter__(self) -> "StopAtOnce":
        super().__enter__()
        self._wait = time.monotonic(), GRACE_SECONDS  # what is left to do afterwards may wait, too
        return self

    def _note(self, number: int, frame) -> None:
        is_first, self.signal_number = not self.signal_number, number
        if is_first and number == signal.SIGINT:
            raise KeyboardInterrupt
        if is_first:
            raise Stopped(number, self.last_words())


class StopRequest(_Watch):
    """SIGTERM or Ctrl-C, noted so that the step is finished and saved; a second one leaves at once."""

    _open: list["StopRequest"] = []

    def __enter__(self) -> "StopRequest":
        super().__enter__()
        self._open.append(self)
        return self

    def __exit__(self, *exception) -> None:
        self._open.remove(self)
        super().__exit__(*exception)

    @classmethod
    def innermost(cls) -> "StopRequest":
        """Return the request of the block that this thread is in, or one that no signal reaches."""
        return cls._open[-1] if cls._open else cls()


def forget_main_signals() -> None:
    """Let a process that was forked neither answer for the main one nor outlive its SIGTERM."""
    signal.set_wakeup_fd(-1)  # its signals would count as the main process's own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_quietly_until_run() -> None:
    """Let Ctrl-C end a script of ours that still imports its packages, without a traceback."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = (ours, os.path.join(ours, "demo"), os.path.join(ours, "benchmarks"))
    if script is not None and os.path.dirname(os.path.abspath(script)) in folders:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
