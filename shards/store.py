"""Whole shards on this machine: where they lie, or in a cache of what is elsewhere. Each is digested once.

A shard counts as digested as long as its file looks as it did then. That is noted in a file of its own, for
other processes and later runs.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from system.errors import DataError
from system.whole_files import whole_file

from .index import PACK_AGAIN, Shard


class LocalShards:
    """Shards in a folder of this machine. notes_dir: for later runs; None: each process digests by itself."""

    def __init__(self, folder: Path, notes_dir: Path | None = None) -> None:
        self.folder, self.notes = folder, DigestNotes(notes_dir)
        self._known: dict[int, list[int]] = {}

    def path_of(self, shard: Shard) -> Path:
        """Return a shard's path; the first time reads it whole. Raises DataError."""
        path, look = self.folder / shard.name, None
        with contextlib.suppress(OSError):
            look = look_of(path)
        if look is None or look != self._known.get(shard.number):
            with self.notes.locked(shard):  # one process digests it, the others find the note
                problem = self.notes.problem(path, shard)
            if problem:
                fix = f"copy it again from where it was made, or remove it and {PACK_AGAIN}"
                fix += " (--verify tells which others)"
                raise DataError(path, problem, fix)
            self._known[shard.number] = look
        return path


class DigestNotes:
    """Which shards have the content that the index has a digest of, by what their files look like."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def path_of(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    @contextlib.contextmanager
    def locked(self, shard: Shard) -> Iterator[None]:
        """Keep other processes from a shard's note, in the block, where notes can be written."""
        with contextlib.ExitStack() as held:
            if self.folder is not None:
                with contextlib.suppress(OSError, NotImplementedError):  # a drive may have no locks
                    self.folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(FileLock(self.folder / f"{shard.name}.lock"))
            yield

    def problem(self, path: Path, shard: Shard) -> str:
        """Return what is wrong with a shard's file, "" where nothing is. Reads it whole once."""
        try:
            look = look_of(path)
            if look[0] != shard.size:
                return f"is {look[0]:,} bytes long, by the index {shard.size:,}"
            if self._noted(shard) == [shard.sha256, *look]:
                return ""
            with path.open("rb", buffering=0) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return "is missing, the index has it"
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        if digest != shard.sha256:
            return "has another content than the index says: it was changed or damaged"
        if look_of(path) == look:
            self.note(shard, look)
        return ""

    def _noted(self, shard: Shard) -> list | None:
        with contextlib.suppress(OSError, ValueError):
            if self.folder is not None:
                return json.loads(self.path_of(shard.name).read_bytes())
        return None

    def note(self, shard: Shard, look: list[int]) -> None:
        """Note that a shard's file of this look has the right content."""
        with contextlib.suppress(OSError):  # then it is digested again
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                with whole_file(self.path_of(shard.name)) as aside:
                    aside.write_text(json.dumps([shard.sha256, *look]), encoding="utf-8")


def look_of(path: Path) -> list[int]:
    """Return size, dates and number of a file. Raises OSError."""
    facts = os.stat(path)
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
