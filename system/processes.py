"""A function over many samples in several processes, with a progress bar.

Processes, not threads: a quarter of a check is JSON and NumPy in small pieces, which hold Python's lock, and
a file that FFmpeg falls over ends one worker instead of the run.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2
from tqdm import tqdm

Item, Result = TypeVar("Item"), TypeVar("Result")

# Fewer items are done before a process has started: elsewhere it imports the whole program again.
MIN_ITEMS_PER_PROCESS = 4 if sys.platform == "linux" else 64
BAR_DELAY = 2.0  # seconds; what is done by then needs no bar


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_workers: int | None,  # None: as many as there are cores, at most 8
    title: str,
    crashed: Callable[[Item], Result],
) -> list[Result]:
    """Return the function's results in the order of items. Both functions must be picklable.

    crashed: the result for an item that ends its process, as a file may do that FFmpeg falls over.
    """
    workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
    workers = min(workers, len(items) // MIN_ITEMS_PER_PROCESS)
    interval = 0.1 if sys.stderr.isatty() else 10.0  # a log file wants fewer lines
    with tqdm(total=len(items), desc=title, delay=BAR_DELAY, mininterval=interval, leave=False) as bar:
        if workers < 2:
            return [_counted(function(item), bar) for item in items]
        results, left = {}, dict(enumerate(items))
        while left:
            results |= _run(function, left, workers, bar)
            lost = [index for index in left if index not in results]
            # Work is handed out in order: one of the first lost ones ended the pool. Each has its own turn.
            suspects, later = lost[: 2 * workers + 1], lost[2 * workers + 1 :]
            for index in suspects:
                results |= _run(function, {index: items[index]}, 1, bar)
                if index not in results:
                    results[index] = _counted(crashed(items[index]), bar)
            left = {index: items[index] for index in later}
    return [results[index] for index in range(len(items))]


def _counted(result: Result, bar: tqdm) -> Result:
    bar.update()
    return result


def _run(
    function: Callable[[Item], Result], items: dict[int, Item], workers: int, bar: tqdm
) -> dict[int, Result]:
    """Return the results of {index: item}, without those that were lost with the pool."""
    # Forked where that is safe, as PyTorch's data loader starts its workers.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    futures, results = {}, {}
    try:
        with contextlib.suppress(BrokenProcessPool):  # it may break while the last items are handed in
            for index, item in items.items():
                futures[pool.submit(function, item)] = index
        for future in as_completed(futures):
            with contextlib.suppress(BrokenProcessPool):
                results[futures[future]] = _counted(future.result(), bar)
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process to handle
    cv2.setNumThreads(0)  # its threads did not come along into this process
