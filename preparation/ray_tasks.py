"""The same work on the machines of a Ray cluster: one video per task, whichever machine has room.

All machines see the input and output folders under the same paths, and have this code and its packages. A
task whose process or machine dies is begun again, on another machine where there is one; a video that ends
every process that prepares it is named, and the others go on.
"""

import contextlib
import importlib.util
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2

from system.console import steady_streams
from system.errors import ConfigError, DataError
from system.patience import NOTE_SECONDS, TURN_SECONDS, Patience

from .pose.estimators import gpu_share
from .sample_folder import PARTIAL_FOLDER, PROCESS, tidy_aside
from .settings import Settings
from .sources import Source
from .workers import Done, Progress, prepare_one

MOST_TRIES = 3  # of a video whose process or machine dies
MEMORY_BYTES = 1 << 30  # of a task: models, and a few frames of a large video
QUEUED_PER_CORE = 2  # tasks given to the cluster at a time; the other videos wait here
KNOCK_SECONDS = 10.0
TELL_SECONDS = 1.0  # between a task's messages of its progress


def check_ray() -> None:
    """Raise ConfigError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        needed = "--executor ray needs ray, on every machine"
        raise ConfigError(f"{needed}; install it with: pip install -r requirements-ray.txt")


@dataclass(frozen=True)
class _Job:
    """What all tasks of a run share."""

    settings: Settings
    output_dir: Path
    directory: str  # of the main process: a user's function may be given relative to it
    sign: Path  # a file of the output folder, by which a machine knows that it sees it


class _Board:
    """An actor on the main process' machine, to which the tasks report progress."""

    def __init__(self) -> None:
        self._frames: Counter[str] = Counter()

    def add(self, name: str, num_frames: float) -> None:
        self._frames[name] += num_frames

    def take(self) -> dict[str, float]:
        """Return the frames done since the last call, by Source.name."""
        taken, self._frames = dict(self._frames), Counter()
        return taken


def run_on_ray(
    sources: Sequence[Source], settings: Settings, output_dir: Path,
    *, address: str | None = None, most_tasks: int | None = None,
) -> Iterator[Progress | Done]:  # fmt: skip
    """Yield what happens, as `run_workers` does. most_tasks: at a time; None: as there is room for.

    Raises ConfigError where there is no such cluster.
    """
    if not sources:
        return
    ray, was_connected = _connect(address)
    sign = (output_dir / PARTIAL_FOLDER / f".seen_{PROCESS}").absolute()
    sign.touch()
    cluster = _Cluster(ray, _Job(settings, output_dir.absolute(), os.getcwd(), sign), most_tasks)
    waiting, patience = deque(sources), Patience(NOTE_SECONDS, float("inf"))
    try:
        while waiting or cluster.running:
            for _ in range(min(len(waiting), cluster.room())):
                cluster.begin(waiting.popleft())
            events = [*cluster.progress(), *cluster.ended()]
            for event in events:
                if isinstance(event, Source):
                    waiting.appendleft(event)  # its process died: again
                else:
                    yield event
            if events:
                patience.restart()
            else:
                patience.waited_in_vain(lambda: f"the Ray cluster, {len(cluster.running)} videos given to it")
    finally:
        cluster.stop()
        sign.unlink(missing_ok=True)
        if not was_connected:
            ray.shutdown()


class _Cluster:
    """Tasks under way."""

    def __init__(self, ray: ModuleType, job: _Job, most_tasks: int | None) -> None:
        self._ray, self._job, self._most_tasks = ray, job, most_tasks
        self._tries: Counter[Source] = Counter()
        self.running: dict[Any, Source] = {}  # {reference to the outcome: video}
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._board = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=here).remote()
        share = gpu_share(job.settings) if ray.cluster_resources().get("GPU") else 0
        self._task = ray.remote(
            num_cpus=1, num_gpus=share, memory=MEMORY_BYTES, max_retries=0, scheduling_strategy="SPREAD"
        )(_prepare_remotely)

    def room(self) -> int:
        """Return how many more videos to give to the cluster."""
        cores = int(self._ray.cluster_resources().get("CPU", 0))
        return (self._most_tasks or max(1, QUEUED_PER_CORE * cores)) - len(self.running)

    def begin(self, source: Source) -> None:
        """Give a video to the cluster; the first machine that has room takes it."""
        self._tries[source] += 1
        reference = self._task.remote(_absolute(source), self._job, self._board)
        self.running[reference] = source

    def progress(self) -> list[Progress]:
        taken = self._ray.get(self._board.take.remote())
        by_name = {source.name: source for source in self.running.values()}
        return [Progress(by_name[name], frames) for name, frames in taken.items() if name in by_name]

    def ended(self) -> list[Done | Source]:
        """Return what has ended within a turn: what became of a video, or one that is to be begun again."""
        references = list(self.running)
        ready, _ = self._ray.wait(references, num_returns=1, timeout=TURN_SECONDS)
        if ready:  # and whatever else is
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        return [self._outcome(reference) for reference in ready]

    def _outcome(self, reference: Any) -> Done | Source:
        source, exceptions = self.running.pop(reference), self._ray.exceptions
        try:
            return replace(self._ray.get(reference), source=source)
        except exceptions.RayTaskError as error:  # none of preparation's: those are in Done
            reason = str(error.cause or error).strip().splitlines()[-1]
            fix = "see that all machines have the same code and packages"
            return Done(source, fault=DataError(source.path, f"its task failed ({reason})", fix))
        except exceptions.RayError as error:
            tidy_aside(self._job.output_dir, source)
            if self._tries[source] < MOST_TRIES:
                return source
            problem = f"the process that prepared it ended {MOST_TRIES} times ({type(error).__name__})"
            fix = "if the memory was full, use fewer --num_workers; run the same command again"
            return Done(source, fault=DataError(source.path, problem, fix))

    def stop(self) -> None:
        """End all tasks, and what they run."""
        for reference in self.running:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(reference, force=True)
        self._ray.kill(self._board)


def _connect(address: str | None) -> tuple[ModuleType, bool]:
    """Return (ray, connected; whether it was so before). Raises ConfigError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import ray.util.scheduling_strategies

    was_connected = ray.is_initialized()
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"--ray_address {address}" if address else "--executor ray"
        fix = "start a cluster with `ray start --head`, and give the address that it prints"
        raise ConfigError(f"{where}: no Ray cluster ({str(error).splitlines()[0]}); {fix}") from error
    return ray, was_connected


def _knock(address: str | None) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


def _absolute(source: Source) -> Source:
    sound_path = None if source.sound_path is None else source.sound_path.absolute()
    return replace(source, path=source.path.absolute(), sound_path=sound_path)


# ---- on a machine of the cluster ----


def _prepare_remotely(source: Source, job: _Job, board: Any) -> Done:
    """Return what became of a video; on whichever machine this is."""
    steady_streams()  # a user's own function may print
    cv2.setNumThreads(1)
    here = os.uname().nodename if hasattr(os, "uname") else "a machine"
    for path in (job.sign, source.path):
        if not path.exists():
            problem = f"is not seen on {here}"
            fix = "let all machines of the cluster have the folders under the same paths"
            seen = job.output_dir if path is job.sign else path
            return Done(source, fault=DataError(seen, problem, fix), is_fatal=path is job.sign)
    with contextlib.suppress(OSError):
        os.chdir(job.directory)
    return prepare_one(source, job.settings, job.output_dir, _Reporter(board, source.name))


class _Reporter:
    """Tells the board how many frames' work is done, now and then."""

    def __init__(self, board: Any, name: str) -> None:
        self._board, self._name, self._frames, self._told = board, name, 0.0, time.monotonic()

    def __call__(self, num_frames: float) -> None:
        self._frames += num_frames
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._board.add.remote(self._name, self._frames)
            self._frames, self._told = 0.0, time.monotonic()
