"""TensorBoard's writer, but a log that cannot be written, or that someone removes, ends no training.

tensorboard's own writes from a thread: a fault there is a traceback on the console and, later, an error in
the middle of a step. Here the fault comes where the events are written, and is reported once.
"""

import os
import socket
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

FLUSH_SECONDS = 10.0
RETRY_SECONDS = 60.0


class EventFile(FileWriter):
    """One event file in `log_dir`, a new one after a fault; `say` takes the line for the user."""

    def __init__(self, log_dir: Path, say: Callable[[str], None]):  # not the base's, which starts the thread
        self.log_dir, self.say, self.has_warned = Path(log_dir), say, False
        self.path: Path | None = None
        self.records = BytesIO()  # not in the file yet
        self.due = 0.0  # of the next flush or, without a file, of the next try to make one

    def add_event(self, event: Event, step: int | None = None, walltime: float | None = None) -> None:
        now = time.monotonic()
        if self.path is None and now < self.due:
            return
        event.wall_time, event.step = walltime or time.time(), int(step or 0)
        RecordWriter(self.records).write(event.SerializeToString())
        if now >= self.due:
            self.flush()

    def flush(self) -> None:
        if not self.records.tell():
            return
        records, self.records = self.records.getvalue(), BytesIO()
        self.due = time.monotonic() + FLUSH_SECONDS
        try:
            if self.path is None:
                self.path = self._make_file()
            elif not self.path.exists():
                raise FileNotFoundError("it was removed")
            with self.path.open("ab") as file:
                file.write(records)
        except OSError as error:
            if not self.has_warned:
                self.say(
                    f"warning: the log in {self.log_dir} cannot be written: {error.strerror or error}. "
                    "Training goes on; what is logged in the meantime is lost"
                )
            # A folder that was removed can be made again at once.
            retry = 0.0 if isinstance(error, FileNotFoundError) else time.monotonic() + RETRY_SECONDS
            self.path, self.has_warned, self.due = None, True, retry

    close = flush

    def _make_file(self) -> Path:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        # The name is what TensorBoard looks for; nanoseconds, so that a second file sorts after the first.
        moment = time.time_ns()
        name = f"events.out.tfevents.{moment // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{moment}"
        with (self.log_dir / name).open("xb") as file:
            start = Event(wall_time=moment / 1e9, file_version="brain.Event:2")
            RecordWriter(file).write(start.SerializeToString())
        return self.log_dir / name


class BoardWriter(SummaryWriter):
    """torch's SummaryWriter over an EventFile. `purge_step` hides what earlier files hold from there on."""

    def __init__(self, log_dir: Path, say: Callable[[str], None], purge_step: int | None = None):
        self.event_file = EventFile(log_dir, say)
        super().__init__(str(log_dir))
        if purge_step is not None:
            self.event_file.add_event(Event(session_log=SessionLog(status=SessionLog.START)), purge_step)

    def _get_file_writer(self) -> FileWriter:
        self.file_writer, self.all_writers = self.event_file, {self.log_dir: self.event_file}
        return self.event_file
