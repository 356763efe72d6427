"""A TensorBoard log that cannot be written ends no run: one warning, and it logs again when it can."""

import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import event_file
from training.event_file import BoardWriter


def logged(log_dir):
    events = EventAccumulator(str(log_dir))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_what_is_written_can_be_read(tmp_path):
    said = []
    writer = BoardWriter(tmp_path / "logs", said.append)
    for step in (1, 2, 3):
        writer.add_scalar("loss", step / 2, step)
    writer.close()
    assert logged(tmp_path / "logs") == [(1, 0.5), (2, 1.0), (3, 1.5)]
    # A resumed run hides what the interrupted one logged beyond its checkpoint.
    writer = BoardWriter(tmp_path / "logs", said.append, purge_step=3)
    writer.add_scalar("loss", 7, 3)
    writer.close()
    assert logged(tmp_path / "logs") == [(1, 0.5), (2, 1.0), (3, 7.0)] and not said


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path):
    (tmp_path / "logs").write_text("a file")
    said = []
    writer = BoardWriter(tmp_path / "logs", said.append)
    for step in range(5):
        writer.add_scalar("loss", 1, step)
    writer.close()
    assert len(said) == 1 and said[0].startswith(f"warning: the log in {tmp_path / 'logs'} cannot be written")


def test_a_folder_that_disappears_is_made_again(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(event_file, "FLUSH_SECONDS", 0.0)
    writer = BoardWriter(tmp_path / "logs", said.append)
    writer.add_scalar("loss", 1, 1)
    shutil.rmtree(tmp_path / "logs")
    for step in (2, 3, 4):
        writer.add_scalar("loss", 1, step)
    writer.close()
    assert len(said) == 1 and "it was removed. Training goes on" in said[0]
    assert logged(tmp_path / "logs") == [(3, 1.0), (4, 1.0)]


def test_a_full_disk_is_tried_again_later(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")  # not on Windows
    said = []
    monkeypatch.setattr(event_file, "FLUSH_SECONDS", 0.0)
    writer = BoardWriter(tmp_path / "logs", said.append)
    writer.add_scalar("loss", 1, 1)
    writer.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # stands for the full disk
    try:
        writer.add_scalar("loss", 1, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.add_scalar("loss", 1, 3)  # too early
    writer.event_file.due = 0.0
    writer.add_scalar("loss", 1, 4)
    writer.close()
    assert len(said) == 1
    assert logged(tmp_path / "logs") == [(1, 1.0), (4, 1.0)]
