"""Files that lie inside larger ones, read by path as if they were files of their own.

A pack is mounted at a path where no folder is; what the functions here are asked below it comes from the
pack, all else from the disk.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from system.whole_files import check_ordinary


@dataclass(frozen=True)
class Part:
    """Where a packed file's bytes are: a part of a file on this machine."""

    path: Path
    offset: int
    size: int


class Pack(Protocol):
    """Packed files by their names below the pack's mount, with slashes."""

    def part(self, name: str) -> Part | None:
        """Return where a file is; None where there is none of this name."""

    def names_in(self, name: str) -> list[str]:
        """Return the names of the files in a folder; none where there is no such folder."""


_mounted: dict[str, Pack] = {}  # {path with a slash at its end: pack}


def mount(path: str | os.PathLike, pack: Pack) -> None:
    """Let the files of a pack be read below a path, in this process."""
    _mounted[os.path.join(os.fspath(path), "")] = pack


def is_packed(path: str | os.PathLike) -> bool:
    return _found(path) is not None


def _found(path: str | os.PathLike) -> tuple[Pack, str] | None:
    """Return (the pack that a path lies in, the name in it)."""
    text = os.fspath(path)
    for root, pack in _mounted.items():
        if text.startswith(root):
            return pack, text[len(root) :].replace(os.sep, "/")
    return None


def part_of(path: str | os.PathLike) -> Part:
    """Return where a packed file is. Raises FileNotFoundError where the pack has none of this name."""
    pack, name = _found(path)
    part = pack.part(name)
    if part is None:
        raise FileNotFoundError(2, "no such file", os.fspath(path))
    return part


def is_file(path: Path) -> bool:
    found = _found(path)
    return path.is_file() if found is None else found[0].part(found[1]) is not None


def is_dir(path: Path) -> bool:
    found = _found(path)
    return path.is_dir() if found is None else bool(found[0].names_in(found[1]))


def entries_of(folder: Path) -> list[Path]:
    """Return what lies in a folder, in no order."""
    found = _found(folder)
    if found is None:
        return list(folder.iterdir())
    return [folder / name for name in found[0].names_in(found[1])]


def size_of(path: Path) -> int:
    """Return the size of a file in bytes. Raises OSError."""
    return part_of(path).size if is_packed(path) else path.stat().st_size


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises OSError, or DataError for what is no ordinary file."""
    if not is_packed(path):
        check_ordinary(path)
        return path.read_bytes()
    with open_packed(path) as file:
        return file.read()


def open_bytes(path: Path) -> BinaryIO:
    """Return a file opened for reading. Raises OSError."""
    return io.BufferedReader(open_packed(path)) if is_packed(path) else path.open("rb")


def open_packed(path: Path) -> "PartFile":
    """Return a packed file opened for reading. Raises OSError."""
    try:
        return PartFile(part_of(path), os.fspath(path))
    except FileNotFoundError:
        # The file around it went between two system calls, out of a cache that is full: it comes again.
        return PartFile(part_of(path), os.fspath(path))


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the path of a copy of a packed file, a file of its own of the same name until the block ends."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = Path(folder, path.name)
        copy.write_bytes(read_bytes(path))
        yield copy


class PartFile(io.RawIOBase):
    """A part of a file as a file; `name` is the packed file's, by whose ending FFmpeg knows some formats."""

    whole: io.FileIO | None = None  # the file around it

    def __init__(self, part: Part, name: str) -> None:
        super().__init__()
        self.name, self.part, self._place = name, part, 0
        self.whole = open(part.path, "rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.part.size}[whence]
        if start + offset < 0:
            raise OSError(22, "invalid argument")
        self._place = start + offset
        return self._place

    def readinto(self, buffer) -> int:
        wanted = max(0, min(len(buffer), self.part.size - self._place))
        self.whole.seek(self.part.offset + self._place)
        count = self.whole.readinto(memoryview(buffer)[:wanted]) if wanted else 0
        if wanted and not count:
            raise OSError(5, f"{self.part.path} ends before byte {self.part.offset + self.part.size}")
        self._place += count
        return count

    def close(self) -> None:
        if self.whole is not None:
            self.whole.close()
        super().close()
