"""Data loader processes: which signals they take, and what is told when one of them dies."""

import os
import signal
import time
from contextlib import contextmanager

import torch

from system.stop_request import SAME_REQUEST_SECONDS


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
    """Return of what a worker died, while it read which sample, and what to do."""
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
