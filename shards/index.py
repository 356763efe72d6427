"""The index of a folder of shards: where each sample is, and what the check found. An SQLite file.

What a start needs of all samples (names, shards, frames) is kept as arrays too: ten million rows of a table
would take longer to read than the first step. A sample's own row is read when its turn comes.
"""

import contextlib
import json
import os
import sqlite3
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from datasets.packed_files import Part
from system.errors import DataError

from .layout import id_of

FORMAT = 1
SQLITE_MAGIC = b"SQLite format 3\0"
ABOUT = "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT)"
SHARDS = "CREATE TABLE shards (number INTEGER PRIMARY KEY, name TEXT, size INTEGER, sha256 TEXT)"
SAMPLES = """CREATE TABLE samples (number INTEGER PRIMARY KEY, name TEXT, shard INTEGER, offset INTEGER,
             size INTEGER, frames INTEGER, sha256 TEXT, verdict TEXT, files BLOB, frame_table BLOB,
             moments BLOB)"""
KEYS = ("CREATE UNIQUE INDEX names ON samples (name)", "CREATE INDEX places ON samples (shard, offset)")
ARRAYS = "CREATE TABLE arrays (name TEXT PRIMARY KEY, content BLOB)"
KEPT_ROWS = 256  # of the samples read last
PACK_AGAIN = "pack the data again with pack_guidance.py"


@dataclass(frozen=True)
class Shard:
    """A tar file of samples, by the index's word."""

    number: int
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class SampleRow:
    """Where a sample is: its part of a shard, and its files {path in a data folder: place in the shard}."""

    number: int
    name: str
    shard: int
    offset: int
    size: int
    frames: int
    sha256: str
    verdict: str  # the check's warnings, a line each
    files: dict[str, tuple[int, int]]  # (offset in the shard, size)
    frame_table: bytes | None = None
    moments: bytes | None = None


class Names(Sequence[str]):
    """The names of all samples, in one piece of memory."""

    def __init__(self, text: bytes, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:
        number = range(len(self))[number]
        start = int(self.ends[number - 1]) if number else 0
        return self.text[start : int(self.ends[number])].decode()


class ShardIndex:
    """An index, opened for reading; what is read of all samples is read at once, here. Raises DataError."""

    def __init__(self, path: Path) -> None:
        self.path, self._connection, self._pid = path, None, 0
        self._rows: OrderedDict[int, SampleRow] = OrderedDict()
        self._numbers: dict[str, int | None] = {}  # by name, of those asked for last
        if not path.is_file():
            raise DataError(path, "no such index of shards", PACK_AGAIN)
        with self._faults_explained():
            self.about = _about(self._ask("SELECT * FROM about"))
            self.shards = [Shard(*row) for row in self._ask("SELECT * FROM shards ORDER BY number")]
            arrays = dict(self._ask("SELECT * FROM arrays"))
            self.shard_numbers = np.frombuffer(arrays["shard"], np.int32)
            self.num_frames = np.frombuffer(arrays["frames"], np.int32)
            self.names = Names(arrays["names"], np.frombuffer(arrays["name_ends"], np.int64))

    def __getstate__(self) -> dict:
        of_this_process = {"_connection": None, "_rows": OrderedDict(), "_numbers": {}}
        return self.__dict__ | of_this_process

    def __len__(self) -> int:
        return len(self.names)

    def count(self) -> str:
        """Return words for how many samples there are, in how many shards."""
        return in_words(len(self), len(self.shards))

    def row(self, number: int) -> SampleRow:
        """Return a sample's row. Raises DataError."""
        row = self._rows.get(number)
        if row is None:
            with self._faults_explained():
                (values,) = self._ask("SELECT * FROM samples WHERE number = ?", number)
                row = self._rows[number] = as_row(values)
            if len(self._rows) > KEPT_ROWS:
                self._rows.popitem(last=False)
        return row

    def rows_of(self, shard: int) -> Iterator[SampleRow]:
        """Yield the rows of a shard's samples as they lie there. Raises DataError."""
        with self._faults_explained():
            for values in self._ask("SELECT * FROM samples WHERE shard = ? ORDER BY offset", shard):
                yield as_row(values)

    def moments(self, numbers: np.ndarray) -> Iterator[tuple[int, bytes | None]]:
        """Yield (number, what its rows add to the statistics) of samples, ascending. Raises DataError."""
        wanted = np.zeros(len(self), bool)
        wanted[numbers] = True
        with self._faults_explained():
            for number, content in self._ask("SELECT number, moments FROM samples ORDER BY number"):
                if wanted[number]:
                    yield number, content

    def number_of(self, name: str) -> int | None:
        """Return the number of the sample of this name."""
        if name not in self._numbers:
            with self._faults_explained():
                found = list(self._ask("SELECT number FROM samples WHERE name = ?", name))
            if len(self._numbers) > KEPT_ROWS:
                self._numbers.clear()
            self._numbers[name] = found[0][0] if found else None
        return self._numbers[name]

    def _ask(self, question: str, *values) -> Iterator[tuple]:
        if self._connection is None or self._pid != os.getpid():
            self._connection, self._pid = _connected(self.path), os.getpid()
        return self._connection.execute(question, values)

    def _faults_explained(self) -> contextlib.AbstractContextManager:
        return _faults_explained(self.path)


def read_about(path: Path) -> dict:
    """Return what an index says of all its samples. Raises DataError."""
    if not path.is_file():
        raise DataError(path, "no such index of shards", PACK_AGAIN)
    with _faults_explained(path), contextlib.closing(_connected(path)) as connection:
        return _about(connection.execute("SELECT * FROM about"))


def may_be_index(path: Path) -> bool:
    """Return whether a file begins as an index of this version does, or is too short to tell."""
    with path.open("rb") as file:
        head = file.read(64)  # a database's version is in bytes 60 to 63
    if len(head) < 64:
        return SQLITE_MAGIC.startswith(head[:16])
    return head[:16] == SQLITE_MAGIC and int.from_bytes(head[60:]) == FORMAT


def _about(rows: Iterable[tuple[str, str]]) -> dict:
    return {name: json.loads(value) for name, value in rows}


def _connected(path: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
    connection = sqlite3.connect(address, uri=True, check_same_thread=False)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != FORMAT:
        problem = f"is an index of version {version}, this program reads {FORMAT}"
        raise DataError(path, problem, PACK_AGAIN)
    return connection


@contextlib.contextmanager
def _faults_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, KeyError, ValueError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        problem = f"is no whole index of shards ({type(error).__name__}: {error})"
        raise DataError(path, problem, f"copy it again, or {PACK_AGAIN}") from error


def in_words(num_samples: int, num_shards: int) -> str:
    samples, shards = "sample" + "s" * (num_samples != 1), "shard" + "s" * (num_shards != 1)
    return f"{num_samples:,} {samples} in {num_shards:,} {shards}"


def as_row(values: tuple) -> SampleRow:
    *before, files, frame_table, moments = values
    places = {path: (offset, size) for path, offset, size in json.loads(zlib.decompress(files))}
    return SampleRow(*before, places, frame_table, moments)


def write_index(path: Path, about: dict, shards: Iterable[Shard], rows: Iterable[SampleRow]) -> None:
    """Write an index to `path`, where no file is. rows: in the order of their numbers."""
    names, ends, numbers, frames = [], [], [], []
    address = f"file:{quote(str(path.absolute()))}?nolock=1"  # drives in networks may have no locks
    with contextlib.closing(sqlite3.connect(address, uri=True)) as connection, connection:
        for table in (ABOUT, SHARDS, SAMPLES, ARRAYS):
            connection.execute(table)
        for row in rows:
            names.append(row.name.encode())
            ends.append(len(names[-1]))
            numbers.append(row.shard)
            frames.append(row.frames)
            connection.execute(f"INSERT INTO samples VALUES ({', '.join('?' * 11)})", _values(row))
        for key in KEYS:
            connection.execute(key)
        words = ((name, json.dumps(value)) for name, value in about.items())
        connection.executemany("INSERT INTO about VALUES (?, ?)", words)
        whole = ((shard.number, shard.name, shard.size, shard.sha256) for shard in shards)
        connection.executemany("INSERT INTO shards VALUES (?, ?, ?, ?)", whole)
        arrays = {
            "shard": np.array(numbers, np.int32).tobytes(), "frames": np.array(frames, np.int32).tobytes(),
            "names": b"".join(names), "name_ends": np.cumsum(ends, dtype=np.int64).tobytes(),
        }  # fmt: skip
        connection.executemany("INSERT INTO arrays VALUES (?, ?)", arrays.items())
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def _values(row: SampleRow) -> tuple:
    files = [(path, *place) for path, place in row.files.items()]
    packed = zlib.compress(json.dumps(files).encode(), 1)
    return (
        row.number, row.name, row.shard, row.offset, row.size, row.frames, row.sha256, row.verdict, packed,
        row.frame_table, row.moments,
    )  # fmt: skip


class IndexedFiles:
    """The files of all samples as `SHARD/SAMPLE/poses/dance_001.npy`: a Pack of datasets/packed_files.py.

    store: has `path_of(shard)`, the path of a whole shard on this machine.
    """

    def __init__(self, index: ShardIndex, store) -> None:
        self.index, self.store = index, store

    def part(self, name: str) -> Part | None:
        """Return where a file is; waits until its shard is on this machine. Raises DataError, RunError."""
        row, path = self._row_of(name)
        if row is None or path not in row.files:
            return None
        return Part(self.store.path_of(self.index.shards[row.shard]), *row.files[path])

    def names_in(self, name: str) -> list[str]:
        """Return the names of the files in a folder, which is one sample's."""
        row, path = self._row_of(name)
        prefix = f"{path}/"
        return [one[len(prefix) :] for one in row.files if one.startswith(prefix)] if row is not None else []

    def _row_of(self, name: str) -> tuple[SampleRow | None, str]:
        """Return (the sample that a name is of, the rest of the name)."""
        _, key, path = (name.split("/", 2) + ["", ""])[:3]
        number = self.index.number_of(id_of(key))
        return None if number is None else self.index.row(number), path
