"""The order of the training samples, the loader that follows it, and its worker processes.

All epochs form one endless stream of samples; a step takes the next `clips per step` of it, whatever the
number of processes or micro-batches. Each sample is seen once per epoch, and a run resumes at any position.
"""

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from system.errors import RunError, UserError
from system.stop_request import SAME_REQUEST_SECONDS

from .objective import mix_seed


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

    def order(self, epoch: int) -> list[int]:
        """Return the dataset indices of an epoch in the order they are trained."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
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
                batch.append((position, epoch, order[place]))
            yield batch
            first += self.num_processes * self.batch_size


class _EpochSamples(Dataset):
    """The dataset under keys (position, epoch, index), so that workers that live on know the epoch.

    `now_read` [workers, 2] holds each worker's pid and the index of the sample that it is reading, or -1.
    """

    def __init__(self, dataset, now_read: torch.Tensor):
        self.dataset, self.now_read = dataset, now_read

    def __getitem__(self, key: tuple[int, int, int]):
        position, epoch, index = key
        self.dataset.set_epoch(epoch)
        worker = get_worker_info()
        if worker is not None:
            self.now_read[worker.id] = torch.tensor([os.getpid(), index])
        try:
            return position, self.dataset[index]
        except UserError as error:
            # Sent as a value: raised in a worker it would arrive as a traceback inside a message.
            return position, error
        except (OSError, MemoryError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            return position, RunError(f"sample {name_of(self.dataset, index)} cannot be read: {why}")
        finally:
            if worker is not None:
                self.now_read[worker.id, 1] = -1


def _collate(collate: Callable, samples: list[tuple]) -> dict | Exception:
    positions, items = zip(*samples, strict=True)
    errors = (item for item in items if isinstance(item, Exception))
    return next(errors, None) or {**collate(list(items)), "position": list(positions)}


def endless_batches(
    dataset, stream: SampleStream, collate: Callable, *, num_workers: int, pin_memory: bool = False
) -> Iterator[dict]:
    """Yield batch dicts in the stream's order, with "position", the samples' places in the stream.

    A UserError is raised as the dataset raised it, also from a worker process. Raises RunError, with the
    sample, for a file that cannot be read and for a worker that died.
    """
    now_read = torch.full((max(1, num_workers), 2), -1).share_memory_()
    loader = DataLoader(
        _EpochSamples(dataset, now_read),
        batch_sampler=stream,
        collate_fn=functools.partial(_collate, collate),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_main,
    )
    with worker_deaths_found_here():
        children = multiprocessing.active_children()
        iterator = iter(loader)
        workers = [child for child in multiprocessing.active_children() if child not in children]
    try:
        for batch in iterator:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    except RuntimeError as error:
        dead = [worker for worker in workers if worker.exitcode is not None]
        if isinstance(error, RunError) or not dead:
            raise
        raise RunError(describe_death(dead[0], dataset, now_read)) from None
    finally:
        # Ends the workers now. Kept alive by an exception's traceback, they would end by 5 s timeouts each.
        del iterator, loader


# ---- worker processes ----


def leave_signals_to_main(worker_id: int) -> None:
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

    Without it the death is found, at most 5 seconds later, where the next batch is awaited.
    """
    if not hasattr(signal, "SIGCHLD"):
        yield  # Windows
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def describe_death(worker, dataset, now_read: torch.Tensor) -> str:
    """Return the cause of a worker's death, the sample that it was reading, and what to do."""
    code = worker.exitcode
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    hints = {
        "SIGKILL": "the system does so when memory runs out: try fewer --num_workers",
        "SIGBUS": "shared memory is full: enlarge /dev/shm (docker: --shm-size) or use fewer --num_workers",
    }
    hint = hints.get(how, "look at its files: --check_data decodes every video")
    reading = {pid: index for pid, index in now_read.tolist() if index >= 0}
    when = "between two samples"
    if worker.pid in reading:
        when = f"while it was reading sample {name_of(dataset, reading[worker.pid])}"
    return f"a data worker ended ({how}) {when}; {hint}"


def name_of(dataset, index: int) -> str:
    return dataset.sample_ids[index] if hasattr(dataset, "sample_ids") else str(index)
