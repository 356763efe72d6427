"""A folder belongs to one run; what was killed holds nothing."""

import subprocess
import sys
import time

import pytest

from system.errors import DataError
from system.folder_lock import FolderLock

HOLDER = """
import os, sys, time
from pathlib import Path
from system.folder_lock import FolderLock
folder = Path(sys.argv[1])
lock = FolderLock(folder, folder / ".lock", holder="first", fix="wait")
if os.fork() == 0:  # as a data worker, which lives on for a while
    os.write(1, b"ready\\n")
    time.sleep(30)
os.write(1, b"ready\\n")
time.sleep(30)
"""


def take(folder):
    return FolderLock(folder, folder / ".lock", holder="first", fix="wait for it")


def test_taken_folder_is_named_with_what_to_do(tmp_path):
    lock = take(tmp_path)
    with pytest.raises(DataError, match="another first is writing there; wait for it"):
        take(tmp_path)
    lock.release()
    take(tmp_path).release()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_killed_holder_lets_go_while_its_workers_live(tmp_path, repository):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], cwd=repository, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert [holder.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    with pytest.raises(DataError):
        take(tmp_path)
    holder.kill()
    holder.wait()
    started = time.monotonic()
    take(tmp_path).release()
    assert time.monotonic() - started < 20  # not the child's 30


def test_file_system_without_locks_stops_nothing(tmp_path, monkeypatch):
    def acquire(self):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("system.folder_lock.FileLock.acquire", acquire)
    take(tmp_path).release()
