"""The order of the training samples, the loader that follows it, and its worker processes.

All epochs form one endless stream of samples; a step takes the next `clips per step` of it, whatever the
number of processes or micro-batches. Each sample is seen once per epoch, and a run resumes at any position.
"""

import functools
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from shards.order import grouped_order
from system.batch_transfer import FULL_FIX, BatchFile, Transfer
from system.console import steady_streams
from system.errors import RunError, UserError
from system.patience import Patience, bounded, say
from system.processes import kill_children_but, raise_open_files_limit, room_for_files
from system.stop_request import GRACE_SECONDS, SAME_REQUEST_SECONDS, Stopped, StopRequest

from .objective import mix_seed

FILES_PER_WORKER = 40  # two batches on their way, each of at most so many tensors
POLL_SECONDS = 1.0


@dataclass
class SampleStream:
    """Batches of (position, epoch, index) for one process, from `start_position` of the stream on, endlessly.

    Micro-batch m of process r holds the stream's samples (m x processes + r) x batch_size and the following:
    together the processes read the stream without a gap.
    """

    indices: Sequence[int]
    _: KW_ONLY
    batch_size: int
    seed: int
    rank: int = 0
    num_processes: int = 1
    start_position: int = 0
    shard_numbers: np.ndarray | None = None  # of each of the indices

    def order(self, epoch: int) -> Sequence[int]:
        """Return the dataset indices of an epoch in the order they are trained."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        if self.shard_numbers is not None:
            return np.asarray(self.indices)[grouped_order(self.shard_numbers, generator)]
        places = torch.randperm(len(self.indices), generator=generator).tolist()
        return [self.indices[place] for place in places]

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        known_epoch, order = None, []
        first = self.start_position + self.rank * self.batch_size
        while True:
            batch = []
            for position in range(first, first + self.batch_size):
                epoch, place = divmod(position, len(self.indices))
                if epoch != known_epoch:
                    known_epoch, order = epoch, self.order(epoch)
                batch.append((position, epoch, int(order[place])))
            yield batch
            first += self.num_processes * self.batch_size


class _EpochSamples(Dataset):
    """The dataset under keys (position, epoch, index), so that workers that live on know the epoch.

    `now_read` holds two numbers for each worker: its pid, and the index of the sample that it is reading, or
    -1. The main process has one, too: number 0, where there are no workers.
    """

    def __init__(self, dataset, now_read: Sequence[int]):
        self.dataset, self.now_read = dataset, now_read

    def __getitem__(self, key: tuple[int, int, int]):
        position, epoch, index = key
        self.dataset.set_epoch(epoch)
        worker = get_worker_info()
        place = 2 * (worker.id if worker is not None else 0)
        self.now_read[place : place + 2] = [os.getpid(), index]
        try:
            return position, self.dataset[index]
        except (UserError, RunError) as error:
            # Sent as a value: raised in a worker it would arrive as a traceback inside a message.
            return position, error
        except (OSError, MemoryError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            return position, RunError(f"sample {name_of(self.dataset, index)} cannot be read: {why}")
        finally:
            self.now_read[place + 1] = -1


def _collate(collate: Callable, transfer: Transfer, samples: list[tuple]) -> dict | Exception | BatchFile:
    positions, items = zip(*samples, strict=True)
    error = next((item for item in items if isinstance(item, Exception)), None)
    if error is not None:
        return error
    batch = {**collate(list(items)), "position": list(positions)}
    return batch if get_worker_info() is None else transfer.sent(batch)


def endless_batches(
    dataset, stream: SampleStream, collate: Callable, *, num_workers: int, pin_memory: bool = False
) -> Iterator[dict]:
    """Yield batch dicts in the stream's order, with "position", the samples' places in the stream.

    A UserError is raised as the dataset raised it, also from a worker process. Raises RunError, with the
    sample, for a file that cannot be read and for a worker that died; Stopped, when a request to stop came
    and the batch did not.
    """
    before, workers, iterator, said = multiprocessing.active_children(), [], None, set()
    transfer = Transfer(has_few_files=not enough_files_for(num_workers))
    settings = {
        "batch_sampler": stream, "collate_fn": functools.partial(_collate, collate, transfer),
        "pin_memory": pin_memory,
        # Else PyTorch's loader takes a number from the generator that dropout draws from, when it starts: a
        # resumed run's first step would be another one.
        "generator": torch.Generator().manual_seed(mix_seed(stream.seed, 2, stream.start_position)),
    }  # fmt: skip
    try:
        now_read, iterator = _start_loader(dataset, num_workers, settings)
        workers = [child for child in multiprocessing.active_children() if child not in before]
        while True:
            what = functools.partial(describe_reading, dataset, now_read)
            with nullcontext() if workers else bounded(what):  # else nobody looks while this process reads
                batch = _next(iterator, what)
            if isinstance(batch, Exception):
                raise batch
            if isinstance(batch, BatchFile):
                if batch.why not in said:
                    folder = batch.path.parent.parent
                    say(f"note: {batch.why}. Until then batches that need it go through files in {folder}")
                    said.add(batch.why)
                batch = transfer.received(batch)
            yield batch
    except RuntimeError as error:
        dead = [worker for worker in workers if worker.exitcode is not None]
        if isinstance(error, RunError) or not dead:
            raise
        raise RunError(describe_death(dead[0], dataset, now_read)) from None
    finally:
        # What they read is of no use any more, and one may never answer.
        now = multiprocessing.active_children()
        with worker_deaths_found_here():
            kill_children_but([child for child in now if child not in workers])
        # Ends the workers now. Kept alive by an exception's traceback, they would end by 5 s timeouts each.
        iterator = None
        transfer.close()


def _start_loader(dataset, num_workers: int, settings: dict) -> tuple[Sequence[int], Iterator]:
    """Return (the numbers that tell what is being read, an iterator over the batches).

    Where no process can be started, for want of memory, files or semaphores, this one reads.
    """
    if num_workers > 0:
        before = multiprocessing.active_children()
        try:
            now_read = multiprocessing.RawArray("q", [-1] * (2 * num_workers))
            loader = DataLoader(
                _EpochSamples(dataset, now_read), num_workers=num_workers, persistent_workers=True,
                timeout=POLL_SECONDS, worker_init_fn=start_worker, **settings,
            )  # fmt: skip
            with worker_deaths_found_here():
                return now_read, iter(loader)
        except BaseException as error:
            kill_children_but(before)
            if not isinstance(error, OSError):
                raise
            why = error.strerror or error
            _drop_half_made(error)
            say(f"note: no data workers, they cannot be started ({why}): samples are read in this process")
    now_read = [-1, -1]
    return now_read, iter(DataLoader(_EpochSamples(dataset, now_read), **settings))


def _drop_half_made(error: OSError) -> None:
    """Let go of PyTorch's iterator without its workers: by itself, it ends in a traceback."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda fault: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook


def _next(iterator: Iterator, what: Callable[[], str]):
    """Return the next batch; `what` says what is waited for. Raises Stopped, RunError after a long wait."""
    stop, patience, seconds_since_request = StopRequest.innermost(), Patience(), 0.0
    while True:
        with stop.waiting(lambda: f"stopped while it waited for {what()}; its last checkpoint is kept"):
            try:
                return next(iterator)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
        pinning = getattr(iterator, "_pin_memory_thread", None)
        if pinning is not None and not pinning.is_alive():  # PyTorch looks only where it has no timeout
            raise RunError(
                "the thread that takes batches from the data workers ended, its traceback is above: "
                "use --num_workers 0, which needs none"
            )
        if stop.signal_number:
            seconds_since_request += POLL_SECONDS
            if seconds_since_request >= GRACE_SECONDS:
                raise Stopped(stop.signal_number, f"stopped while it waited for {what()}")
        patience.waited_in_vain(what, POLL_SECONDS)


# ---- worker processes ----


def enough_files_for(num_workers: int) -> bool:
    """Return whether each tensor on its way from a worker may be an open file, as PyTorch has it."""
    raise_open_files_limit()
    return room_for_files() >= FILES_PER_WORKER * (num_workers + 1)


def start_worker(worker_id: int) -> None:
    leave_signals_to_main()
    steady_streams()


def leave_signals_to_main() -> None:
    """Let Ctrl-C, SIGTERM to all processes of a group (torchrun, Slurm) pass: the step is still finished."""
    seen = []

    def end_at_the_second(number, frame):
        seen.append(time.monotonic())
        if seen[-1] - seen[0] > SAME_REQUEST_SECONDS:
            # As the main process; it is also Python's own, to a worker that is still there at its exit.
            os._exit(128 + number)

    # A forked worker has the main process's wake-up descriptor: its signals would count as that one's own.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_at_the_second)


@contextmanager
def worker_deaths_found_here():
    """Keep PyTorch's SIGCHLD handler out: it raises wherever the main process is, in a save for example.

    Without it the death is found, at most 5 seconds later, where the next batch is awaited. It is out
    in the block too, where a DataLoader of a user's own has set it before.
    """
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if handler is None:  # Windows, or not of Python's
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def describe_death(worker, dataset, now_read: Sequence[int]) -> str:
    """Return the cause of a worker's death, the sample that it was reading, and what to do."""
    code = worker.exitcode
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    hints = {
        "SIGKILL": "the system does so when memory runs out: try fewer --num_workers",
        "SIGBUS": f"shared memory is full: {FULL_FIX}",
    }
    hint = hints.get(how, "look at its files: --check_data decodes every video")
    reading = dict(being_read(now_read))
    when = "between two samples"
    if worker.pid in reading:
        when = f"while it was reading sample {name_of(dataset, reading[worker.pid])}"
    return f"a data worker ended ({how}) {when}; {hint}"


def being_read(now_read: Sequence[int]) -> list[tuple[int, int]]:
    """Return (pid, index) of the processes that are reading a sample."""
    pairs = zip(now_read[::2], now_read[1::2], strict=True)
    return [(pid, index) for pid, index in pairs if index >= 0]


def describe_reading(dataset, now_read: Sequence[int]) -> str:
    """Return what is waited for: the samples that are being read."""
    names = sorted({name_of(dataset, index) for _, index in being_read(now_read)})
    return f"sample {', '.join(names)}" if names else "a data worker"


def name_of(dataset, index: int) -> str:
    return dataset.sample_ids[index] if hasattr(dataset, "sample_ids") else str(index)
