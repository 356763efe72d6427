"""A request to stop: SIGTERM or Ctrl-C, noted while a step or a file is finished."""

import os
import signal
import socket
import threading
import time

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST_SECONDS = 0.1


class Stopped(RuntimeError):
    """A request to stop was followed before the training began."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(signal_number, message)
        self.signal_number, self.message = signal_number, message


class StopRequest:
    """SIGTERM or Ctrl-C, noted so that the step is finished and saved; a second one leaves at once.

    Signals less than SAME_REQUEST_SECONDS apart are one: a cluster sends them to all processes, and a
    launcher that gets one hands it on.
    """

    def __init__(self):
        self.signal_number = 0
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        # Python's own handlers wait for the main thread, which may wait for a process that is no more.
        self._incoming, self._outgoing = socket.socketpair()
        self._outgoing.setblocking(False)
        self._previous_descriptor = signal.set_wakeup_fd(self._outgoing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._leave_at_the_second, args=(self._incoming,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        signal.set_wakeup_fd(self._previous_descriptor)
        self._outgoing.close()  # ends the thread
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.signal_number = self.signal_number or number

    @staticmethod
    def _leave_at_the_second(incoming: socket.socket) -> None:
        first = None
        with incoming:
            while number := incoming.recv(1):
                if number[0] not in STOP_SIGNALS:
                    continue
                now = time.monotonic()
                first = first or now
                if now - first > SAME_REQUEST_SECONDS:
                    os._exit(128 + number[0])
