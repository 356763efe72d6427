"""Digests of networks and of source files' contents; files that look unchanged are not read again.

As rsync does, a group of files whose sizes and times are the same is taken to be the same. Each process
writes a file of its own, and all of them are read.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from system.errors import DataError
from system.whole_files import whole_file

MEMORY_PREFIX = "digests-"
# A file changed twice within the clock's tick looks the same: what is as fresh as this is not remembered.
FRESH_SECONDS = 2.0


class SourceDigests:
    """Digests, remembered in a folder as {digest of paths, sizes and times: digest of contents}."""

    def __init__(self, memory_dir: Path, process_index: int = 0) -> None:
        self.path = memory_dir / f"{MEMORY_PREFIX}{process_index}.json"
        self.known: dict[str, str] = {}
        for path in sorted(memory_dir.glob(f"{MEMORY_PREFIX}*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):  # damaged: all files are read again
                self.known |= json.loads(path.read_text(encoding="utf-8"))
        self.used: dict[str, str] = {}
        self.has_news = False

    def digest(self, files: Sequence[Path]) -> str:
        """Return the digest of the files' contents in this order, whatever their names; "" of none.

        Raises DataError.
        """
        if not files:
            return ""
        try:
            stats = [file.stat() for file in files]
            looks = [[os.path.abspath(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
                     for file, stat in zip(files, stats, strict=True)]  # fmt: skip
            look = hashlib.blake2b(json.dumps(looks).encode(), digest_size=16).hexdigest()
            found = self.known.get(look) or _content_digest(files)
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
            raise DataError(error.filename or files[0], problem, "restore the file") from error
        newest = max(max(stat.st_mtime, stat.st_ctime) for stat in stats)
        if newest < time.time() - FRESH_SECONDS:
            self.used[look] = found
            self.has_news |= look not in self.known
        return found

    def save(self) -> None:
        """Save this process's digests; those of files that are gone are forgotten.

        A folder that cannot be written, as another user's whole cache, costs the reading of the files again.
        """
        if not self.has_news:
            return
        with contextlib.suppress(OSError), whole_file(self.path) as aside:
            aside.write_text(json.dumps(self.used), encoding="utf-8")


def weights_digest(part: nn.Module) -> str:
    """Return a digest of configuration and weights, wherever they came from, whatever version wrote them."""
    config = part.config if isinstance(part.config, dict) else part.config.to_dict()
    left_out = ("transformers_version", "dtype", "torch_dtype")
    config = {name: config[name] for name in config if not name.startswith("_") and name not in left_out}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(part.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def values_digest(part: nn.Module) -> str:
    """Return a digest of the weights' values alone: a library's new version may name and configure anew."""
    values = (hashlib.blake2b(_bytes_of(tensor), digest_size=16).digest() for tensor in part.parameters())
    return hashlib.blake2b(b"".join(sorted(values)), digest_size=16).hexdigest()


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    # A copy: FSDP frees the memory of weights, which it cannot once NumPy has seen it.
    return tensor.detach().to("cpu", copy=True).contiguous().reshape(-1).view(torch.uint8).numpy()


def _content_digest(files: Sequence[Path]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "blake2b").digest())
    return whole.hexdigest()
