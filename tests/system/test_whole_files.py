"""What is written is whole or absent, and read by those who may read what is beside it."""

import errno
import os
import sys
from types import SimpleNamespace

import pytest

from system import whole_files
from system.whole_files import free_bytes, is_disk_full, publish, rename, size_text, whole_file


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / f"{'춤' * 70}.json"  # nearly as long as a name may be
    path.write_text("before")
    with pytest.raises(OSError), whole_file(path) as aside:
        aside.write_text("half")
        assert path.read_text() == "before"
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "before"
    with whole_file(path) as aside:
        aside.unlink()  # as a library that writes beside it and renames
        aside.touch(0o600)
        aside.write_text("after")
    (tmp_path / "ordinary").touch()
    assert path.read_text() == "after"
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no such rights")
def test_who_may_read_the_folder_may_read_its_files(tmp_path):
    """safetensors makes files for their owner alone."""
    (tmp_path / "aside" / "unet").mkdir(parents=True)
    for folder, mode in ((tmp_path / "aside", 0o750), (tmp_path / "aside" / "unet", 0o755)):
        folder.chmod(mode)
        (folder / "file").touch(0o600)
    publish(tmp_path / "aside", tmp_path / "final")
    modes = [(tmp_path / "final" / name).stat().st_mode & 0o777 for name in ("file", "unet/file")]
    assert modes == [0o640, 0o644]


@pytest.mark.parametrize("system", ["nt", "posix"])
def test_a_name_that_a_scanner_holds_is_asked_for_again_on_windows(system, tmp_path, monkeypatch):
    refusals, pauses, replace = [PermissionError(13, "Access is denied")] * 3, [], os.replace

    def refused_at_first(source, target):
        if refusals:
            raise refusals.pop()
        replace(source, target)

    monkeypatch.setattr(whole_files.time, "sleep", pauses.append)
    (tmp_path / "a.tmp").write_text("1")
    monkeypatch.setattr(whole_files, "os", SimpleNamespace(name=system, replace=refused_at_first))
    if system == "nt":
        rename(tmp_path / "a.tmp", tmp_path / "a")
        assert (tmp_path / "a").read_text() == "1" and pauses == [0.1, 0.3, 1.0]
        refusals += [PermissionError(13, "Access is denied")] * 5
    pauses.clear()
    with pytest.raises(PermissionError):
        rename(tmp_path / "a.tmp", tmp_path / "a")
    assert len(pauses) == (4 if system == "nt" else 0)


def test_room(tmp_path):
    assert free_bytes(tmp_path / "not" / "there") > 0
    assert (size_text(2**20), size_text(2**30)) == ("1.0 MiB", "1.00 GiB")
    errors = (OSError(errno.EDQUOT, "x"), RuntimeError("I/O error: No space left on device"), OSError(5, "x"))
    assert [is_disk_full(error) for error in errors] == [True, True, False]
