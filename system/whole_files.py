"""Files and folders that are whole or absent: written aside, flushed, renamed; and the room on the disk."""

import errno
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from system.errors import DataError

ASIDE, REPLACED = ".tmp", ".replaced"  # endings of what is being written or removed, and of a predecessor
SCANNER_SECONDS = (0.1, 0.3, 1.0, 3.0)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path to write a file to, which is renamed to `path` when the block ends without an error.

    Several processes may write the same file: the last one's stays.
    """
    # The end of the name alone: file names end at 255 bytes.
    aside = path.with_name(f"{path.name[-40:]}.{uuid.uuid4().hex[:8]}{ASIDE}")
    try:
        aside.touch()
        mode = aside.stat().st_mode
        yield aside
        aside.chmod(mode)  # safetensors gives rights to the owner alone
        flush(aside)
        rename(aside, path)
        flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder its name, in place of a file that has it.

    On Windows and on its network drives this is refused for moments, while a virus scanner or an indexer
    looks at what was just written. Elsewhere a refusal is for good.
    """
    for pause_seconds in SCANNER_SECONDS if os.name == "nt" else ():
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(pause_seconds)
    os.replace(source, target)


def publish(aside: Path, path: Path) -> None:
    """Give the finished folder `aside` its name; an earlier folder of that name goes afterwards.

    Stopped between its two renames, it leaves the earlier one as NAME.replaced, which `tidy` brings back.
    """
    for folder, _, names in os.walk(aside):
        for name in names:
            _allow_reading(Path(folder) / name)
            flush(Path(folder) / name)
        flush(Path(folder))
    replaced = path.with_name(path.name + REPLACED)
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        rename(path, replaced)
    rename(aside, path)
    flush(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill, hidden, which has the name `path` when the block ends without an error."""
    aside = path.with_name(f".{path.name[-40:]}{ASIDE}")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed run
    try:
        aside.mkdir()
        yield aside
        publish(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder; stopped in the middle, it leaves none of that name that is not whole."""
    going = path.with_name(path.name + ASIDE)
    rename(path, going)
    shutil.rmtree(going, ignore_errors=True)


def tidy(parent: Path, names: str) -> list[str]:
    """Clear away what a killed run has left of folders whose names match the expression `names`.

    Return one line per folder.
    """
    lines, leftover_name = [], re.compile(rf"({names})({re.escape(ASIDE)}|{re.escape(REPLACED)})")
    for leftover in sorted(Path(parent).glob("*")):
        match = leftover_name.fullmatch(leftover.name)
        if not match:
            continue
        path = leftover.with_name(match[1])
        if match[2] == REPLACED and not path.exists():
            leftover.rename(path)
            lines.append(f"{path.name} is back: an earlier run was stopped before its successor had the name")
        else:
            shutil.rmtree(leftover, ignore_errors=True)
            lines.append(f"removed {leftover.name}, of an earlier run that was stopped while it saved")
    return lines


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to flush a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _allow_reading(path: Path) -> None:
    """Let those read a file who may read others beside it: safetensors makes files for their owner alone."""
    path.chmod(path.stat().st_mode | path.parent.stat().st_mode & 0o444)


def check_ordinary(path: Path) -> None:
    """Raise DataError for a named pipe, a socket or a device, which may wait for ever to be read."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # whoever opens it finds out
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        problem = "is a named pipe, a socket or a device, not an ordinary file"
        raise DataError(path, problem, "put the file there, or remove it")


def free_bytes(folder: Path) -> int:
    """Return the room on the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.resolve().parents) if path.exists())).free


def is_disk_full(error: BaseException) -> bool:
    """Return whether the disk or the quota is full; libraries tell it in words alone."""
    number, words = getattr(error, "errno", None), ("No space left", "not enough space")
    return number in (errno.ENOSPC, errno.EDQUOT) or any(word in str(error) for word in words)


def size_text(num_bytes: int) -> str:
    """Return a size for the user, in MiB or GiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"
