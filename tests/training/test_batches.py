"""The sample stream: each sample once an epoch, the same for any number of processes, from any position."""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from torch.utils.data._utils import signal_handling

from system.errors import DataError, RunError
from system.patience import Patience
from system.stop_request import Stopped, StopRequest
from training import batches as training_batches
from training.batches import SampleStream, endless_batches


class Numbers:
    """A dataset whose item tells index and epoch."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        if index == 99:
            raise DataError("sample 99", "its music is missing")
        return {"index": index, "epoch": self.epoch}


def collate(items):
    return {name: [item[name] for item in items] for name in items[0]}


def take(stream, count):
    return list(itertools.islice(stream, count))


def test_every_sample_once_an_epoch_in_another_order():
    stream = SampleStream(range(7), batch_size=1, seed=3)
    keys = [batch[0] for batch in take(stream, 21)]
    epochs = [[index for _, epoch, index in keys if epoch == number] for number in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [position for position, _, _ in keys] == list(range(21))


@pytest.mark.parametrize(("batch_size", "num_processes"), [(2, 1), (1, 2), (3, 2), (5, 4)])
def test_batches_and_processes_share_one_stream(batch_size, num_processes):
    one = [batch[0] for batch in take(SampleStream(range(5), batch_size=1, seed=0), 60)]
    ranks = [
        take(SampleStream(range(5), batch_size=batch_size, seed=0, rank=rank, num_processes=num_processes), 3)
        for rank in range(num_processes)
    ]
    shared = [key for turn in zip(*ranks, strict=True) for batch in turn for key in batch]
    assert shared == one[: len(shared)]


def test_resumes_in_the_middle_of_an_epoch():
    whole = take(SampleStream(range(5), batch_size=2, seed=0), 6)
    assert take(SampleStream(range(5), batch_size=2, seed=0, start_position=6), 3) == whole[3:]


def test_a_start_takes_nothing_from_the_generator_that_dropout_draws_from():
    state = torch.get_rng_state()
    batches = endless_batches(Numbers(), SampleStream([0], batch_size=1, seed=0), collate, num_workers=0)
    next(batches)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_know_the_epoch_and_errors_arrive_as_raised(num_workers):
    stream = SampleStream([0, 1, 2], batch_size=2, seed=0)
    batches = endless_batches(Numbers(), stream, collate, num_workers=num_workers)
    found = [next(batches) for _ in range(3)]
    assert [batch["epoch"] for batch in found] == [[0, 0], [0, 1], [1, 1]]
    assert [batch["position"] for batch in found] == [[0, 1], [2, 3], [4, 5]]
    batches.close()

    stream = SampleStream([99], batch_size=1, seed=0)
    broken = endless_batches(Numbers(), stream, collate, num_workers=num_workers)
    with pytest.raises(DataError) as raised:
        next(broken)
    assert str(raised.value) == "sample 99: its music is missing"


class Deadly(Numbers):
    """A dataset whose third sample kills the process that reads it, and whose fourth is on a lost disk."""

    sample_ids = ["dance_000", "dance_001", "dance_002", "dance_003"]

    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 3:
            raise PermissionError("the disk is gone")
        return super().__getitem__(index)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_dead_worker_names_its_sample():
    batches = endless_batches(Deadly(), SampleStream([2], batch_size=1, seed=0), collate, num_workers=2)
    with pytest.raises(RunError) as raised:
        next(batches)
    assert "ended (SIGKILL) while it was reading sample dance_002; the system does so" in str(raised.value)


class WakeUps(Numbers):
    def __getitem__(self, index):
        return {"descriptor": signal.set_wakeup_fd(-1)}


def test_a_workers_signal_is_none_of_the_main_process():
    """Slurm signals one process after the other: a late worker's would be taken for main's second."""
    with StopRequest():
        batches = endless_batches(WakeUps(), SampleStream([0], batch_size=1, seed=0), collate, num_workers=1)
        assert next(batches)["descriptor"] == [-1]
        batches.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_cannot_be_read_names_its_sample(num_workers):
    stream = SampleStream([3], batch_size=1, seed=0)
    with pytest.raises(RunError, match="sample dance_003 cannot be read: the disk is gone"):
        next(endless_batches(Deadly(), stream, collate, num_workers=num_workers))


# ---- waits that would have no end ----


class Tensors(Numbers):
    def __getitem__(self, index):
        return {"frames": torch.full((3,), index), "guidance": {"pose": torch.ones(1)}}


def stack(items):
    return {"frames": torch.stack([item["frames"] for item in items]), "guidance": items[0]["guidance"]}


def frames_of(count, num_workers=2):
    """Return what `count` batches hold; the loader is closed."""
    batches = endless_batches(
        Tensors(), SampleStream(range(5), batch_size=2, seed=0), stack, num_workers=num_workers
    )
    try:
        return [next(batches)["frames"].tolist() for _ in range(count)]
    finally:
        batches.close()
        assert not multiprocessing.active_children()


needs_forks = pytest.mark.skipif(sys.platform != "linux", reason="what is patched here is there in a fork")


@needs_forks
def test_full_shared_memory_ends_no_run(monkeypatch, capsys, tmp_path):
    """A stand-in for `mount -t tmpfs -o size=2M tmpfs /dev/shm`, with PyTorch's own words."""

    def share_memory_(tensor):
        words = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
        raise RuntimeError(words)

    usual = frames_of(6)
    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert frames_of(6) == usual
    note = capsys.readouterr().err
    assert note.startswith("note: shared memory is full: enlarge /dev/shm (docker: --shm-size)")
    assert note.count("\n") == 1 and list(tmp_path.iterdir()) == []


@needs_forks
def test_another_loaders_handler_does_not_raise_when_the_workers_end(monkeypatch):
    """PyTorch's, which stays set once a DataLoader of a user's own has had workers."""
    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    signal_handling._set_SIGCHLD_handler()
    try:
        assert len(frames_of(2)) == 2
        assert signal.getsignal(signal.SIGCHLD) is not before
    finally:
        signal.signal(signal.SIGCHLD, before)


@needs_forks
def test_few_open_files_end_no_run(monkeypatch, capsys):
    usual = frames_of(6)
    monkeypatch.setattr(training_batches, "room_for_files", lambda: 50)
    assert frames_of(6) == usual
    assert capsys.readouterr().err.startswith("note: too many open files: raise `ulimit -n`")


@needs_forks
@pytest.mark.filterwarnings("error")  # PyTorch's iterator that is not whole
@pytest.mark.parametrize("num_started", [0, 1])
def test_workers_that_cannot_be_started_are_done_without(num_started, monkeypatch, capsys):
    usual, fork, started = frames_of(6), os.fork, []

    def fork_or_fail():
        if len(started) == num_started:
            raise OSError(12, "Cannot allocate memory")
        started.append(True)
        return fork()

    monkeypatch.setattr(os, "fork", fork_or_fail)
    assert frames_of(6) == usual
    assert "no data workers, they cannot be started (Cannot allocate memory)" in capsys.readouterr().err


class Hanging(Deadly):
    def __getitem__(self, index):
        time.sleep(600)


def next_of_hanging():
    stream = SampleStream([1], batch_size=1, seed=0)
    next(endless_batches(Hanging(), stream, collate, num_workers=1))


class OnceReading(Patience):
    """Counts from when the worker reads: on a busy machine it starts late."""

    def waited_in_vain(self, what, seconds):
        if what() == "sample dance_001":
            super().waited_in_vain(what, seconds)


@needs_forks
def test_a_read_that_hangs_is_named_and_has_an_end(monkeypatch, capsys):
    monkeypatch.setattr(training_batches, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(training_batches, "Patience", lambda: OnceReading(0.1, 0.2))
    with pytest.raises(RunError, match="in vain for sample dance_001"):
        next_of_hanging()
    assert capsys.readouterr().err == "waiting for sample dance_001, 0 s so far\n"
    assert not multiprocessing.active_children()


def test_a_read_in_this_process_is_bounded_too(monkeypatch):
    said = []

    @contextmanager
    def bounded(what):
        said.append(what)
        yield

    class Asking(Numbers):
        def __getitem__(self, index):
            said.append(said[0]())
            return super().__getitem__(index)

    monkeypatch.setattr(training_batches, "bounded", bounded)
    stream = SampleStream([1], batch_size=1, seed=0)
    next(endless_batches(Asking(), stream, collate, num_workers=0))
    assert said[1] == "sample 1"


@needs_forks
def test_one_request_to_stop_ends_the_wait_for_a_worker(monkeypatch):
    class Asked(Patience):
        def waited_in_vain(self, what, seconds):
            if what() == "sample dance_001" and not stop.signal_number:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training_batches, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(training_batches, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(training_batches, "Patience", Asked)
    with StopRequest() as stop, pytest.raises(Stopped, match="for sample dance_001") as stopped:
        next_of_hanging()
    assert stopped.value.signal_number == signal.SIGTERM
    assert not multiprocessing.active_children()


def test_an_ended_thread_that_pins_batches_is_an_error_at_once(monkeypatch):
    class Pinned:
        _pin_memory_thread = threading.Thread(target=int)

        def __next__(self):
            raise RuntimeError("DataLoader timed out after 1.0 seconds")

    monkeypatch.setattr(training_batches, "_start_loader", lambda *_: ([-1, -1], Pinned()))
    with pytest.raises(RunError, match="its traceback is above: use --num_workers 0"):
        next(endless_batches(Numbers(), SampleStream([0], batch_size=1, seed=0), collate, num_workers=0))


@needs_forks
def test_processes_of_others_are_left_alone():
    batches = endless_batches(Numbers(), SampleStream([0], batch_size=1, seed=0), collate, num_workers=0)
    next(batches)
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    other.start()
    try:
        batches.close()
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


class Raising(Numbers):
    def __getitem__(self, index):
        raise KeyError("a bug")


def test_a_bug_in_a_worker_ends_the_run():
    batches = endless_batches(Raising(), SampleStream([0], batch_size=1, seed=0), collate, num_workers=1)
    with pytest.raises(KeyError, match="a bug"):
        next(batches)
    assert not multiprocessing.active_children()


@needs_forks
def test_a_segfault_names_its_sample():
    class Segfault(Deadly):
        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGSEGV)

    batches = endless_batches(Segfault(), SampleStream([0], batch_size=1, seed=0), collate, num_workers=1)
    with pytest.raises(RunError, match="SIGSEGV. while it was reading sample dance_000; look at its files"):
        next(batches)
