"""The sample stream: each sample once an epoch, the same for any number of processes, from any position."""

import itertools
import os
import signal
import sys

import pytest

from system.errors import DataError, RunError
from system.stop_request import StopRequest
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
def test_a_dead_worker_names_its_sample(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
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
