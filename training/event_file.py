"""TensorBoard's writer, but a log that cannot be written, or that someone removes, ends no training.

tensorboard's own writes from a thread: a fault there is a traceback on the console and, later, an error in
the middle of a step. Here the fault comes where the event is written, and is told once.
"""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

FLUSH_SECONDS = 10.0
RETRY_SECONDS = 60.0


class EventFile:
    """One event file in `log_dir`, a new one after a fault; `say` takes the line for the user."""

    def __init__(self, log_dir: Path, say: Callable[[str], None]):
        self.log_dir = Path(log_dir)
        self.say = say
        self.path = self.file = None
        self.due = 0.0  # of the next flush or, without a file, of the next try to open one
        self.has_warned = False

    def add_event(self, event: Event) -> None:
        now = time.monotonic()
        if self.file is None and now < self.due:
            return
        try:
            if self.file is None:
                self._open()
            RecordWriter(self.file).write(event.SerializeToString())
            if now >= self.due:
                self.flush()
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        self.due = time.monotonic() + FLUSH_SECONDS
        if self.file is None:
            return
        try:
            self.file.flush()
            if not self.path.exists():  # written to, but of no use
                raise FileNotFoundError("it was removed")
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        self.flush()
        if self.file is not None:
            self.file.close()
            self.file = None

    def get_logdir(self) -> str:
        return str(self.log_dir)

    def _open(self) -> None:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        # The name is what TensorBoard looks for; nanoseconds, so that a second file sorts after the first.
        moment = time.time()
        name = f"events.out.tfevents.{int(moment):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self.path = self.log_dir / name
        self.file = self.path.open("ab")
        RecordWriter(self.file).write(
            Event(wall_time=moment, file_version="brain.Event:2").SerializeToString()
        )
        self.file.flush()
        self.due = time.monotonic() + FLUSH_SECONDS

    def _give_up(self, error: OSError) -> None:
        if not self.has_warned:
            self.say(
                f"warning: the log in {self.log_dir} cannot be written: {error.strerror or error}. Training "
                "goes on; what is logged in the meantime is lost"
            )
        self.has_warned, self.due = True, time.monotonic() + RETRY_SECONDS
        if isinstance(error, FileNotFoundError):
            self.due = 0.0  # the folder can be made again at once
        try:
            if self.file is not None:
                self.file.close()
        except OSError:
            pass  # what it held is lost, as was said
        self.file = None


class _EventFileWriter(FileWriter):
    def __init__(self, event_file: EventFile):  # not the base's, which starts the thread
        self.event_writer = event_file


class BoardWriter(SummaryWriter):
    """torch's SummaryWriter over an EventFile. `purge_step` hides what earlier files hold from there on."""

    def __init__(self, log_dir: Path, say: Callable[[str], None], purge_step: int | None = None):
        self.event_file = EventFile(log_dir, say)
        super().__init__(str(log_dir), purge_step=purge_step)

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = _EventFileWriter(self.event_file)
            self.all_writers = {self.event_file.get_logdir(): self.file_writer}
            if self.purge_step is not None:
                self.file_writer.add_event(
                    Event(session_log=SessionLog(status=SessionLog.START)), self.purge_step
                )
        return self.file_writer
