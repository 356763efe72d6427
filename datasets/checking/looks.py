"""What files look like from outside: names, sizes and dates, digested per sample without opening one.

A file that is changed, added or removed changes its sample's look. Takes one system call per file.
"""

import contextlib
import functools
import hashlib
import json
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from operator import attrgetter
from pathlib import Path

import av
from tqdm import tqdm

from datasets.data_folder import METADATA_FOLDER, REFERENCE_FOLDER, VIDEO_FOLDER, DataFolder, Sample, type_dir
from datasets.guidance.kind import KINDS
from datasets.guidance.track import META_NAME
from system.processes import BAR_DELAY

FRAMES_BASE = f"frame table 1, PyAV {av.__version__}".encode()  # the number: raised when it is read otherwise
ROWS_VERSION = 1  # likewise
DIGEST_SIZE = 16  # bytes
PART = 256  # samples
SLOW_SECONDS, NUM_THREADS = 0.002, 16  # waited per sample: a drive in the network is asked by threads

_dates = attrgetter("st_size", "st_mtime_ns", "st_ctime_ns")
_name = attrgetter("name")


def look_of(base: bytes, entries: Iterable[tuple[str, str]]) -> bytes:
    """Return a digest of files (folder, name), and of all that lies in those that are folders.

    base: what else decides what is made of them.
    """
    digest = hashlib.blake2b(base, digest_size=DIGEST_SIZE)
    for folder, name in entries:
        digest.update(os.fsencode(f"{name}\n") + _outside(f"{folder}/{name}"))
    return digest.digest()


def _outside(path: str) -> bytes:
    """Return what a file, a folder or a link looks like."""
    link = b""
    try:
        facts = os.lstat(path)
        if stat.S_ISLNK(facts.st_mode):
            link = os.fsencode(os.readlink(path))
            facts = os.stat(path)
        return link + (_listing(path) if stat.S_ISDIR(facts.st_mode) else struct.pack("3q", *_dates(facts)))
    except OSError as error:  # nothing there, or a link that leads nowhere
        return link + type(error).__name__.encode()


def _listing(path: str) -> bytes:
    with _place(path) as place, os.scandir(place) as found:
        entries = sorted(found, key=_name)
        dates = [_dates_of(entry) for entry in entries]
    links = (entry.name for entry in entries if entry.is_symlink())
    words = [*map(_name, entries), *(os.readlink(f"{path}/{name}") for name in links)]
    return os.fsencode("\n".join(words)) + struct.pack(f"{3 * len(dates)}q", *chain.from_iterable(dates))


@contextlib.contextmanager
def _place(path: str) -> Iterator[int | str]:
    """Yield an open folder, in which files are found sooner; the path where the system cannot list one."""
    if os.scandir not in os.supports_fd:
        yield path
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        yield opened
    finally:
        os.close(opened)


def _dates_of(entry: os.DirEntry) -> tuple[int, int, int]:
    try:
        return _dates(entry.stat())
    except OSError:  # a link that leads nowhere
        return -1, -1, -1


def video_look(sample: Sample) -> bytes:
    """Return the look of a sample's video, on which its frame table depends."""
    return look_of(FRAMES_BASE, [(f"{sample.root}/{VIDEO_FOLDER}", name) for name in sample.video_names])


def rows_base(root: Path, type_name: str, channels: int) -> bytes:
    """Return what decides the rows of a type's tracks besides their files: see `track_look`."""
    base = json.dumps([ROWS_VERSION, type_name, channels, own_kinds()]).encode()
    return look_of(base, [(os.fspath(type_dir(root, type_name)), META_NAME)])


def track_look(sample: Sample, type_name: str, base: bytes) -> bytes:
    """Return the look of a sample's track, on which its rows depend, and with them the statistics."""
    folder = os.fspath(type_dir(sample.root, type_name))
    return look_of(base, [(folder, name) for name in sample.guidance_names[type_name]])


def own_kinds() -> list[str]:
    """Return digests of the user's own kinds of tracks."""
    return sorted(kind.source_digest for kind in KINDS.values() if kind.source_digest)


# ---- of a data folder ----


def sample_looks(folder: DataFolder, base: bytes) -> list[bytes]:
    """Return the look of each sample: of its video, reference image, metadata and tracks."""
    look = functools.partial(_look_of_sample, _Places(folder), base)
    samples, looks = folder.samples, []
    with tqdm(total=len(samples), desc="looking for changes", delay=BAR_DELAY, leave=False) as bar:
        started, busy = time.perf_counter(), time.process_time()
        looks += _each(look, samples[:PART], bar)
        waited = time.perf_counter() - started - (time.process_time() - busy)
        if waited < SLOW_SECONDS * PART:
            return looks + _each(look, samples[PART:], bar)
        parts = [samples[first : first + PART] for first in range(PART, len(samples), PART)]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for found in pool.map(lambda part: _each(look, part, bar), parts):
                looks += found
    return looks


def _each(look: Callable[[Sample], bytes], samples: Sequence[Sample], bar: tqdm) -> list[bytes]:
    found = []
    for first in range(0, len(samples), PART):
        found += map(look, samples[first : first + PART])
        bar.update(len(found) - first)
    return found


class _Places:
    """The folders of a data folder as text."""

    def __init__(self, folder: DataFolder) -> None:
        root = os.fspath(folder.root)
        self.videos, self.references = f"{root}/{VIDEO_FOLDER}", f"{root}/{REFERENCE_FOLDER}"
        self.metadata = f"{root}/{METADATA_FOLDER}" if (folder.root / METADATA_FOLDER).is_dir() else None
        types = folder.samples[0].guidance_names
        self.types = {name: os.fspath(type_dir(folder.root, name)) for name in types}


def _look_of_sample(places: _Places, base: bytes, sample: Sample) -> bytes:
    entries = [(places.videos, name) for name in sample.video_names]
    entries += [(places.references, name) for name in sample.reference_names]
    for type_name, names in sample.guidance_names.items():
        entries += [(places.types[type_name], name) for name in names]
    if places.metadata:
        entries.append((places.metadata, f"{sample.sample_id}.json"))
    return look_of(base, entries)
