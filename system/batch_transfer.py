"""How a batch comes from a worker process: in shared memory or, where that is full, in a file.

PyTorch copies into shared memory in a thread of the worker's queue. A fault there is a traceback and no more:
the batch is lost, and the main process waits for it for ever. Here it is copied before, and a fault has a
way out.
"""

import contextlib
import pickle
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from system.errors import RunError
from system.whole_files import is_disk_full

FULL_FIX = "enlarge /dev/shm (docker: --shm-size) or use fewer --num_workers"
FOLDER_NAME, LEFT_BEHIND_SECONDS = "champ-batches-", 24 * 3600.0
FEW_FILES_FIX = "raise `ulimit -n` or use fewer --num_workers"


@dataclass(frozen=True)
class BatchFile:
    """A batch on the disk, and why it is there."""

    path: Path
    why: str


class Transfer:
    """Sends and receives batches. `has_few_files`: no file can be spared for each tensor on its way."""

    def __init__(self, has_few_files: bool = False) -> None:
        self.has_few_files = has_few_files
        # Named here, made by the first worker that needs it: others cannot put a file of theirs there.
        self.folder_name = FOLDER_NAME + uuid.uuid4().hex
        _remove_left_behind()

    def sent(self, batch: dict) -> dict | BatchFile | RunError:
        """Return what a worker puts into its queue for a batch."""
        why = f"too many open files: {FEW_FILES_FIX}"
        if not self.has_few_files:
            try:
                for tensor in tensors_in(batch):
                    tensor.share_memory_()
                return batch
            except (RuntimeError, OSError) as error:
                words = " ".join(str(error).split())
                if "Too many open files" not in words:
                    why = f"shared memory is full: {FULL_FIX}"
        try:
            folder = Path(tempfile.gettempdir(), self.folder_name)
            folder.mkdir(mode=0o700, exist_ok=True)
            path = folder / uuid.uuid4().hex
            with path.open("wb") as file:
                pickle.dump(batch, file, pickle.HIGHEST_PROTOCOL)
        except OSError as error:
            full = "full" if is_disk_full(error) else f"not to be written ({error.strerror or error})"
            place = error.filename or "the folder of temporary files"
            return RunError(f"{why}; it could go on with files, but {place} is {full}: set TMPDIR to another")
        return BatchFile(path, why)

    def received(self, sent: BatchFile) -> dict:
        """Return the batch of a file, which is removed."""
        with sent.path.open("rb") as file:
            batch = pickle.load(file)
        sent.path.unlink()
        return batch

    def close(self) -> None:
        """Remove what was not received."""
        with contextlib.suppress(OSError):
            shutil.rmtree(Path(tempfile.gettempdir(), self.folder_name))


def _remove_left_behind() -> None:
    """Remove the folders of runs that were killed: for a day nothing was written or received there."""
    with contextlib.suppress(OSError):  # there is no folder of temporary files that can be written
        for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_NAME}*"):
            with contextlib.suppress(OSError):  # another user's
                if time.time() - folder.stat().st_mtime > LEFT_BEHIND_SECONDS:
                    shutil.rmtree(folder)


def tensors_in(batch) -> Iterator[torch.Tensor]:
    """Yield the tensors of a batch, in dicts and lists too."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, dict | list | tuple):
        for value in batch.values() if isinstance(batch, dict) else batch:
            yield from tensors_in(value)
