"""What the check found of each sample, kept in a file of the output folder, for the starts that follow.

Per sample: faults and facts, the video's frame table, what its features add to the statistics. Each counts as
long as its files look as they did. The file may be deleted; then all is checked again. Written by the main
process while no other one reads.
"""

import contextlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import numpy as np

from datasets.data_folder import Sample
from datasets.feature_statistics import Moments
from datasets.media.display import Display
from datasets.media.video import FrameTable
from datasets.unread import Unread

from .data_report import Fault
from .looks import video_look
from .sample_check import SampleResult

FORMAT = 1
CREATE = """CREATE TABLE samples (id BLOB, look BLOB, decoded INTEGER, found TEXT, video_look BLOB,
            frames BLOB, moments BLOB, PRIMARY KEY (id, look, decoded))"""


class KeptFacts:
    """The file, opened when it is first asked. Where there is none, or a damaged one, nothing is known."""

    def __init__(self, path: Path) -> None:
        self.path, self._connection, self._pid = path, None, 0

    def __reduce__(self) -> tuple:
        return KeptFacts, (self.path,)  # a connection is a process's own

    # ---- of all samples: the check ----

    def known(self) -> dict[str, tuple[bytes, bool]]:
        """Return {sample id: (its look, whether its video was decoded)}."""
        rows = self._rows("SELECT id, look, decoded FROM samples")
        return {os.fsdecode(sample_id): (look, bool(decoded)) for sample_id, look, decoded in rows}

    def result(self, sample: Sample) -> SampleResult | None:
        """Return what was found of a sample."""
        for (found,) in self._rows("SELECT found FROM samples WHERE id = ?", os.fsencode(sample.sample_id)):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                content = json.loads(found)
                faults = [Fault(sample.sample_id, **fault) for fault in content["faults"]]
                unread = [Unread(Path(path), reason) for path, reason in content["unread"]]
                return SampleResult(sample, faults, content["facts"], unread)
        return None

    def keep(self, results: Iterable[SampleResult], looks: Iterable[bytes], *, decoded: bool) -> None:
        """Keep what was found of samples; of a disk that takes nothing, nothing is kept."""
        rows = (_as_row(result, look, decoded) for result, look in zip(results, looks, strict=True))
        with contextlib.suppress(sqlite3.Error, OSError), self._opened_to_write() as connection:
            for row in rows:
                connection.execute("DELETE FROM samples WHERE id = ?", row[:1])
                connection.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def forget(self, sample_ids: Iterable[str]) -> None:
        """Forget samples that are gone."""
        gone = [(os.fsencode(sample_id),) for sample_id in sample_ids]
        with contextlib.suppress(sqlite3.Error, OSError):
            if gone:
                with self._opened_to_write() as connection:
                    connection.executemany("DELETE FROM samples WHERE id = ?", gone)

    def clear(self) -> None:
        self._close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    # ---- of one sample: reading clips ----

    def frame_table(self, sample: Sample) -> FrameTable | None:
        """Return the frame table of a sample's video, where that has not changed since."""
        key = os.fsencode(sample.sample_id)
        for look, frames in self._rows("SELECT video_look, frames FROM samples WHERE id = ?", key):
            if frames is not None and look == video_look(sample):
                with contextlib.suppress(ValueError, TypeError, KeyError, zlib.error):
                    return unpack_table(frames)
        return None

    def packed(self, sample_id: str) -> tuple[int, bytes | None, bytes | None]:
        """Return (number of frames, frame table, moments) of a sample that has been checked, as kept."""
        question = "SELECT found, frames, moments FROM samples WHERE id = ?"
        for found, frames, moments in self._rows(question, os.fsencode(sample_id)):
            return json.loads(found)["facts"].get("frames", 0), frames, moments
        return 0, None, None

    def moments(self, sample: Sample, type_name: str, look: bytes) -> Moments | None:
        """Return what a sample's features add to the statistics, where its track has this look."""
        key = os.fsencode(sample.sample_id)
        for (content,) in self._rows("SELECT moments FROM samples WHERE id = ?", key):
            with contextlib.suppress(ValueError, TypeError, KeyError, zlib.error):
                for (name, known_look), found in unpack_moments(content).items():
                    if (name, known_look) == (type_name, look.hex()):
                        return found
        return None

    # ---- the database ----

    def _rows(self, question: str, *values) -> Iterator[tuple]:
        """Yield a question's rows; none of a file that cannot be read."""
        try:
            if self._connection is None or self._pid != os.getpid():
                self._connection, self._pid = self._connected("mode=ro&immutable=1"), os.getpid()
            yield from self._connection.execute(question, values)
        except sqlite3.Error:
            return

    @contextlib.contextmanager
    def _opened_to_write(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection whose changes are all kept, or none where the block raises."""
        self._close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = self._connected("nolock=1")
        except sqlite3.DatabaseError:  # damaged, or of another version
            self.path.unlink(missing_ok=True)
            connection = self._connected("nolock=1")
        with contextlib.closing(connection), connection:
            yield connection

    def _connected(self, mode: str) -> sqlite3.Connection:
        """Return a connection without locks, which drives in networks may not have: one process writes."""
        address = f"file:{quote(str(self.path.absolute()))}?{mode}"
        connection = sqlite3.connect(address, uri=True, check_same_thread=False)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0 and mode.startswith("nolock"):
            connection.execute(CREATE)
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        elif version != FORMAT:
            connection.close()
            raise sqlite3.DatabaseError("of another version")
        return connection

    def _close(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
        self._connection = None


# ---- a row ----


def _as_row(result: SampleResult, look: bytes, decoded: bool) -> tuple:
    faults = [asdict(fault) for fault in result.faults]
    for fault in faults:
        del fault["sample_id"]
    unread = [(os.fspath(path), reason) for path, reason in result.unread]
    found = json.dumps({"faults": faults, "facts": result.facts, "unread": unread})
    table, head = None, [(name, look.hex(), part.count) for name, (look, part) in result.moments.items()]
    if result.table is not None:
        table = pack_table(result.table)
    moments = pack_arrays(head, [np.stack([part.mean, part.squares]) for _, part in result.moments.values()])
    return os.fsencode(result.sample.sample_id), look, decoded, found, result.video_look, table, moments


def pack_arrays(head: object, arrays: Sequence[np.ndarray]) -> bytes:
    shapes = [(array.dtype.str, array.shape) for array in arrays]
    content = [json.dumps([head, shapes]).encode(), b"\n", *(array.tobytes() for array in arrays)]
    return zlib.compress(b"".join(content), 1)


def unpack_arrays(content: bytes) -> tuple:
    """Return (head, arrays). Raises ValueError, TypeError or zlib.error for what is not of `pack_arrays`."""
    words, _, rest = zlib.decompress(content).partition(b"\n")
    (head, shapes), arrays, place = json.loads(words), [], 0
    rest = bytearray(rest)  # arrays that may be written, as PyTorch wants them
    for dtype, shape in shapes:
        array = np.frombuffer(rest, dtype, int(np.prod(shape)), place).reshape(shape)
        place += array.nbytes
        arrays.append(array)
    return head, arrays


def unpack_moments(content: bytes) -> dict[tuple[str, str], Moments]:
    """Return {(guidance type, look of its track): what its rows add to the statistics}."""
    head, values = unpack_arrays(content)
    return {
        (name, look): Moments(count, mean, squares)
        for (name, look, count), (mean, squares) in zip(head, values, strict=True)
    }


def pack_table(table: FrameTable) -> bytes:
    display = table.display
    head = [display.stored, display.scaled, display.turn, display.notes, table.frame_rate, table.has_audio]
    return pack_arrays(head, [table.pts, table.seconds, table.key_pts, table.key_dts])


def unpack_table(content: bytes) -> FrameTable:
    (stored, scaled, turn, notes, frame_rate, has_audio), arrays = unpack_arrays(content)
    display = Display(tuple(stored), tuple(scaled), tuple(turn), tuple(notes))
    return FrameTable(*arrays, display, frame_rate, has_audio)
