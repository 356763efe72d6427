"""The folders that a run saves: written so that all processes agree, and which of them are whole.

Nothing here knows what a checkpoint holds but for its STATE_FILE, which lists the others and their sizes.
"""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from system.errors import SaveError
from system.whole_files import ASIDE, is_disk_full, publish, rename, size_text

STATE_FILE = "trainer_state.json"  # written last: it knows the size of every other file
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
BEST_NAME = "checkpoint-best"  # no number: neither `latest` nor a limit takes it for one of the others
SAVED_NAMES = rf"checkpoint-\d+|{BEST_NAME}|final"
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
            raise OSError(f"it needs {size_text(num_bytes)} and {size_text(free)} are free on this disk")
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
    try:
        free = size_text(shutil.disk_usage(aside.parent).free)
    except OSError:
        return f"{aside.parent} is no longer there"
    if is_disk_full(error):
        return f"the disk is full ({free} free)"
    if any(words in str(error) for words in ("inline_container", "iostream")):  # all that torch.save tells
        return f"a file could not be written to its end, disk or quota are full ({free} free)"
    return " ".join(str(error).split())[:300]


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
    newer = [path for number, path in checkpoint_folders(output_dir) if number > step]
    return [set_aside(path, "of an earlier run") for path in newer]


def set_aside(path: Path, reason: str) -> str:
    """Give a folder a name that no run uses, for a reason; return a line for the user."""
    names = (path.with_name(f"{path.name}.set-aside-{turn}") for turn in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    rename(path, aside)
    return f"{path.name} {reason} is now {aside.name}; delete it if it is not needed"


def file_sizes(folder: Path) -> dict[str, int]:
    """Return {file name: bytes} of a folder, without its STATE_FILE."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != STATE_FILE}


def fault_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None when it is whole."""
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
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
