"""A function over many samples in several processes, with a progress bar.

Processes, not threads: a quarter of a check is JSON and NumPy in small pieces, which hold Python's lock, and
a file that FFmpeg falls over ends one worker instead of the run.
"""

import contextlib
import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2
from tqdm import tqdm

from system.console import steady_streams
from system.patience import TURN_SECONDS, Patience, say
from system.stop_request import forget_main_signals

Item, Result = TypeVar("Item"), TypeVar("Result")

# Fewer items are done before a process has started: elsewhere it imports the whole program again.
MIN_ITEMS_PER_PROCESS = 4 if sys.platform == "linux" else 64
BAR_DELAY = 2.0  # seconds; what is done by then needs no bar
KILL_SECONDS = 1.0  # but where a drive holds a process, not even that ends it
MAX_OPEN_FILES = 4096  # more are not asked for

_killed: list[multiprocessing.Process] = []  # that did not end within KILL_SECONDS


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
    Raises RunError where nothing comes any more, as from a drive that does not answer.
    """
    workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
    workers = min(workers, len(items) // MIN_ITEMS_PER_PROCESS)
    interval = 0.1 if sys.stderr.isatty() else 10.0  # a log file wants fewer lines
    with tqdm(total=len(items), desc=title, delay=BAR_DELAY, mininterval=interval, leave=False) as bar:
        if workers < 2:
            return [_counted(function(item), bar) for item in items]
        raise_open_files_limit()
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
    pool, futures, before = None, {}, multiprocessing.active_children()
    try:
        try:
            # Forked where that is safe, as PyTorch's data loader starts its workers.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
            pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
            with contextlib.suppress(BrokenProcessPool):  # it may break while the last items are handed in
                for index, item in items.items():
                    futures[pool.submit(function, item)] = index
        except OSError as error:
            kill_children_but(before)
            results = _run_here(function, items, bar, error)
        else:
            results = _collect(futures, items, bar)
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        return results
    except BaseException:
        kill_children_but(before)  # one may never answer
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)  # nor end
        raise


def _collect(futures: dict[Future, int], items: dict[int, Item], bar: tqdm) -> dict[int, Result]:
    """Return the results of {future: index of its item}. Raises RunError where nothing comes any more."""
    results, patience, num_left = {}, Patience(), len(futures)
    done = queue.SimpleQueue()  # concurrent.futures.wait would look at all futures for each that is done
    for future in futures:
        future.add_done_callback(done.put)
    while num_left:
        try:
            future = done.get(timeout=TURN_SECONDS)
        except queue.Empty:
            patience.waited_in_vain(lambda: _names(items[futures[one]] for one in futures if one.running()))
            continue
        patience.restart()
        num_left -= 1
        with contextlib.suppress(BrokenProcessPool):
            results[futures[future]] = _counted(future.result(), bar)
    return results


def _run_here(function: Callable, items: dict[int, Item], bar: tqdm, error: OSError) -> dict[int, Result]:
    """Return all results, made in this process: others cannot be started."""
    say(f"note: no worker processes ({error.strerror or error}): {bar.desc} in one process")
    return {index: _counted(function(item), bar) for index, item in items.items()}


def _names(items: Iterator) -> str:
    return ", ".join(str(getattr(item, "sample_id", item)) for item in items) or "worker processes"


def _start_worker() -> None:
    forget_main_signals()
    steady_streams()
    threading.Thread(target=end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)  # its threads did not come along into this process


def end_with_parent() -> None:
    """Wait until the process that started this one has ended, however that was; then end too."""
    multiprocessing.parent_process().join()
    os._exit(1)


def kill_children_but(earlier: Sequence[multiprocessing.Process]) -> None:
    """Kill the processes of this one that are none of the `earlier`, and see them end."""
    kill([process for process in multiprocessing.active_children() if process not in earlier])


def kill(processes: Sequence[multiprocessing.Process]) -> None:
    """Kill processes of this one and see them end, as far as they do."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(KILL_SECONDS)
    _killed.extend(process for process in processes if process.is_alive())


def leave_if_held(code: int) -> None:
    """Leave with this exit code where a killed process has not ended: Python's own exit would wait for it."""
    if any(process.is_alive() for process in _killed):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
                stream.flush()
        os._exit(code)


# ---- open files ----


def raise_open_files_limit() -> None:
    """Let this process and its workers open as many files as the system allows, within reason."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows; a container's rules
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def room_for_files() -> float:
    """Return how many files this process may still open, where the system tells; else infinity."""
    with contextlib.suppress(ImportError, OSError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            return soft - len(os.listdir("/dev/fd"))
    return float("inf")
