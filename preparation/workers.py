"""Worker processes, each on one video at a time. A worker that dies takes one video with it, not the run.

Processes are started afresh (spawn): the models' libraries do not survive a fork. They end with the main
process, however that ends.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import cv2

from datasets import DataError
from system.console import steady_streams
from system.errors import ConfigError, RunError
from system.patience import TURN_SECONDS, Patience, say
from system.processes import end_with_parent, kill, raise_open_files_limit

from .pose.estimators import PoseEstimator, make_pose_estimator
from .prepare_video import VideoResult, prepare_video
from .sample_folder import disk_error
from .settings import Settings
from .sources import Source

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Progress:
    """Work done on a video since the last message, in frames."""

    source: Source
    num_frames: float


@dataclass(frozen=True)
class Done:
    """A video's result. fault: what stopped it; is_fatal: every other video would fail in the same way."""

    source: Source
    result: VideoResult | None = None
    fault: DataError | ConfigError | None = None
    is_fatal: bool = False


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, settings: Settings, output_dir: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, settings, output_dir), daemon=True)
        with _interrupts_held(), _one_thread_each():
            self.process.start()
        theirs.close()
        self.source: Source | None = None

    def begin(self, source: Source) -> None:
        self.source = source
        with contextlib.suppress(OSError):  # it has ended: the pipe says so next
            self.pipe.send(source)


def run_workers(
    sources: Sequence[Source], settings: Settings, output_dir: Path, *, num_workers: int
) -> Iterator[Progress | Done]:
    """Yield what happens, as it happens. Closing the iterator ends all processes at once.

    Raises RunError where no process can be started, and where nothing happens any more.
    """
    waiting, workers, patience = list(reversed(sources)), [], Patience()
    raise_open_files_limit()
    try:
        while waiting or workers:
            while waiting and len(workers) < num_workers:
                try:
                    workers.append(_Worker(settings, output_dir))
                except OSError as error:  # no memory, processes or open files are left
                    num_workers = _fewer(len(workers), error)
                else:
                    workers[-1].begin(waiting.pop())
            ready = wait([worker.pipe for worker in workers], timeout=TURN_SECONDS)
            if ready:
                patience.restart()
            else:
                patience.waited_in_vain(lambda: ", ".join(worker.source.path.name for worker in workers))
            for pipe in ready:
                worker = next(worker for worker in workers if worker.pipe is pipe)
                message = _receive(worker)
                if isinstance(message, Done) and worker.process.is_alive() and waiting:
                    worker.begin(waiting.pop())
                elif isinstance(message, Done):
                    workers.remove(worker)
                    worker.pipe.close()
                yield message
    finally:
        kill([worker.process for worker in workers])


def _fewer(num_workers: int, error: OSError) -> int:
    """Return with how many workers it goes on, after one could not be started. Raises RunError."""
    why = error.strerror or error
    if num_workers == 0:
        raise RunError(f"no process can be started to prepare a video ({why}): end others, then start again")
    say(f"note: {num_workers} at a time, for no more processes can be started ({why})")
    return num_workers


def _receive(worker: _Worker) -> Progress | Done:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode
        reason = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        fix = "if the memory was full, use fewer --num_workers; run the same command again"
        fault = DataError(worker.source.path, f"the process that prepared it ended ({reason})", fix)
        return Done(worker.source, fault=fault)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hide Ctrl-C from processes started in the block: one traceback each; it is the main one's."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let the libraries of processes started here have a single thread."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


# ---- in the worker ----


def _work(pipe: Connection, settings: Settings, output_dir: Path) -> None:
    """Live a worker's life: sources in, messages out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides, and kills
    steady_streams()  # a user's own function may print
    threading.Thread(target=end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    with contextlib.suppress(EOFError):
        while True:
            source = pipe.recv()
            tell = functools.partial(_tell, pipe, source)
            pipe.send(prepare_one(source, settings, output_dir, tell))


def _tell(pipe: Connection, source: Source, num_frames: float) -> None:
    pipe.send(Progress(source, num_frames))


def prepare_one(
    source: Source, settings: Settings, output_dir: Path, on_progress: Callable[[float], None]
) -> Done:
    """Return what became of a video, prepared in this process; the estimator is kept for the next."""
    try:
        estimator = _estimator(settings)
    except Exception as error:
        return Done(source, fault=_describe(error, source, settings), is_fatal=True)
    try:
        return Done(source, prepare_video(source, settings, output_dir, estimator, on_progress))
    except (DataError, ConfigError) as fault:  # ConfigError: a user's function did not return what it should
        return Done(source, fault=fault, is_fatal=isinstance(fault, ConfigError))
    except Exception as error:
        full = disk_error(output_dir, error)
        return Done(source, fault=full or _describe(error, source, settings), is_fatal=full is not None)


@functools.cache
def _estimator(settings: Settings) -> PoseEstimator:
    return make_pose_estimator(settings)


def _describe(error: Exception, source: Source, settings: Settings) -> DataError | ConfigError:
    """Return an unforeseen exception as one line that says where it came from."""
    if isinstance(error, DataError | ConfigError):
        return error
    place = traceback.extract_tb(error.__traceback__)[-1]
    problem = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
    if ":" in settings.pose_estimator + settings.music_features:
        fix = "if that is in your own function, correct it"
    else:
        fix = "re-encode the video; if it fails again, report it"
    return DataError(source.path, problem, fix)
