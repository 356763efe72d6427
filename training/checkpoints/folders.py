"""Folders that are whole or absent: written aside, fsynced, renamed; and which folders of a run are whole.

Nothing here knows what a checkpoint holds but for its STATE_FILE, which lists the others and their sizes.
"""

import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from system.errors import SaveError

STATE_FILE = "trainer_state.json"  # written last: it knows the size of every other file
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
ASIDE, REPLACED = ".tmp", ".replaced"  # endings of a folder being written or removed, and of a predecessor
LEFTOVER_NAME = re.compile(rf"(checkpoint-\d+|final)({re.escape(ASIDE)}|{re.escape(REPLACED)})")
MARGIN_BYTES = 2**20  # file headers, json


@contextmanager
def written_aside(accelerator: Accelerator, path: Path, num_bytes: int):
    """Yield `save(write, main_only=False)`, which calls write(folder); the folder is named `path` at the end.

    Every process enters, and saves the same parts. When a part failed in one process, all raise SaveError,
    what was written is removed, and `path` is as it was before. So it is when less than `num_bytes` are free.
    """
    aside = path.with_name(path.name + ASIDE)

    def save(write: Callable[[Path], None], main_only: bool = False) -> None:
        problem = None
        try:
            if accelerator.is_main_process or not main_only:
                write(aside)
        except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save's
            problem = _explain(error, aside)
        problems = [problem for problem in gather_object([problem]) if problem]  # waits for all
        if problems:
            raise SaveError(f"{path} is not saved: {problems[0]}")

    def start(aside: Path) -> None:
        shutil.rmtree(aside, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < num_bytes + MARGIN_BYTES:
            raise OSError(f"it needs {_size(num_bytes)} and {_size(free)} are free on this disk")
        aside.mkdir()

    try:
        save(start, main_only=True)
        yield save
        save(lambda aside: publish(aside, path), main_only=True)
    except BaseException:
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
        raise


def _explain(error: Exception, aside: Path) -> str:
    """Return why a file could not be written; torch.save says neither what nor why."""
    number = getattr(error, "errno", None)
    try:
        free = shutil.disk_usage(aside.parent).free
    except OSError:
        return f"{aside.parent} is no longer there"
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return f"the disk is full ({_size(free)} free)"
    if any(words in str(error) for words in ("inline_container", "iostream")):  # all that torch.save tells
        return f"a file could not be written to its end, disk or quota are full ({_size(free)} free)"
    return " ".join(str(error).split())[:300]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"


def publish(aside: Path, path: Path) -> None:
    """Give the finished folder `aside` its name; an earlier folder of that name goes afterwards.

    Stopped between its two renames, it leaves the earlier one as NAME.replaced, which `tidy` brings back.
    """
    for folder, _, names in os.walk(aside):
        for name in names:
            _allow_reading(Path(folder) / name)
            _fsync(Path(folder) / name)
        _fsync(Path(folder))
    replaced = path.with_name(path.name + REPLACED)
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
    aside.rename(path)
    _fsync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _allow_reading(path: Path) -> None:
    """Let those read a file who may read others beside it: safetensors makes files for their owner alone."""
    path.chmod(path.stat().st_mode | path.parent.stat().st_mode & 0o444)


def remove(path: Path) -> None:
    """Remove a folder; stopped in the middle, it leaves none of that name that is not whole."""
    going = path.with_name(path.name + ASIDE)
    path.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to flush a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tidy(output_dir: Path) -> list[str]:
    """Clear away what a run that was killed while it saved has left, and return a line for each folder."""
    lines = []
    for leftover in sorted(Path(output_dir).glob("*")):
        match = LEFTOVER_NAME.fullmatch(leftover.name)
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


def checkpoint_folders(output_dir: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of all checkpoints, whole or not, oldest first."""
    matches = ((CHECKPOINT_NAME.fullmatch(path.name), path) for path in Path(output_dir).glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the whole checkpoints of a folder, oldest first."""
    return [path for _, path in checkpoint_folders(output_dir) if fault_of(path) is None]


def set_aside_newer(output_dir: Path, step: int) -> list[str]:
    """Rename checkpoints beyond `step`, which belong to another run or are broken; return a line for each.

    They would otherwise be taken for this run's latest, and this run's own for old ones.
    """
    lines = []
    for number, path in checkpoint_folders(output_dir):
        if number <= step:
            continue
        names = (path.with_name(f"{path.name}.set-aside-{turn}") for turn in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        lines.append(f"{path.name} of an earlier run is now {aside.name}; delete it if it is not needed")
    return lines


def file_sizes(folder: Path) -> dict[str, int]:
    """Return {file name: bytes} of a folder, without its STATE_FILE."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != STATE_FILE}


def fault_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None when it is whole."""
    try:
        state = json.loads((path / STATE_FILE).read_text())
        expected = state.get("files", {})
    except FileNotFoundError:
        return f"{STATE_FILE} is missing: it is half-written, or not a checkpoint of this trainer"
    except (OSError, ValueError, AttributeError):
        return f"{STATE_FILE} cannot be read"
    for name, num_bytes in expected.items():
        try:
            found = (path / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != num_bytes:
            return f"{name} has {found} bytes, {num_bytes} were written"
    return None
