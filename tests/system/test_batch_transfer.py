"""A batch arrives, also where shared memory is full or no file can be opened."""

import os
import tempfile

import pytest
import torch

from system.batch_transfer import BatchFile, Transfer, tensors_in
from system.errors import RunError

FAULTS = {  # PyTorch's own words
    "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)": (
        "shared memory is full: enlarge /dev/shm (docker: --shm-size) or use fewer --num_workers"
    ),
    "unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)": (
        "too many open files: raise `ulimit -n` or use fewer --num_workers"
    ),
}


@pytest.fixture
def batch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    half = torch.tensor([[1.5]], dtype=torch.bfloat16)
    return {"frames": torch.arange(6.0), "guidance": {"pose": half}, "sample_id": ["é"], "position": [3]}


def refuse(monkeypatch, words):
    def share_memory_(tensor):
        raise RuntimeError(words)

    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)


def test_a_killed_runs_folder_is_removed_a_day_later(batch, tmp_path):
    old, new = tmp_path / "champ-batches-1", tmp_path / "champ-batches-2"
    for folder in (old, new):
        folder.mkdir()
        (folder / "batch").touch()
    os.utime(old, (0, 0))
    Transfer()
    assert list(tmp_path.iterdir()) == [new]


def test_a_run_that_needs_no_folder_needs_no_place_for_it(batch, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/no/such/folder"])
    assert Transfer().sent(batch) is batch


def test_the_usual_way_is_shared_memory(batch):
    assert Transfer().sent(batch) is batch
    assert len(list(tensors_in(batch))) == 2 and all(tensor.is_shared() for tensor in tensors_in(batch))


@pytest.mark.parametrize(("words", "why"), FAULTS.items())
def test_else_it_goes_through_a_file(batch, monkeypatch, tmp_path, words, why):
    refuse(monkeypatch, words)
    transfer = Transfer()
    sent = transfer.sent(batch)
    assert isinstance(sent, BatchFile) and sent.why == why
    received = transfer.received(sent)
    assert torch.equal(received["frames"], batch["frames"])
    assert torch.equal(received["guidance"]["pose"], batch["guidance"]["pose"])
    assert received["sample_id"] == ["é"] and not sent.path.exists()
    transfer.sent(batch)
    transfer.close()
    assert list(tmp_path.iterdir()) == []


def test_few_files_are_not_spent_on_tensors(batch):
    transfer = Transfer(has_few_files=True)
    assert transfer.sent(batch).why.startswith("too many open files")
    transfer.close()


def test_nowhere_to_go_is_one_message(batch, monkeypatch):
    refuse(monkeypatch, next(iter(FAULTS)))
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    found = Transfer().sent(batch)
    assert isinstance(found, RunError)
    assert "shared memory is full: enlarge /dev/shm" in str(found) and "set TMPDIR to another" in str(found)
