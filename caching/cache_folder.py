"""A folder of whole safetensors files, each named by the digest of all that decided its content.

A file is written aside, flushed and renamed, so that a file of that name is whole. The latent cache and the
feature cache are two such folders.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from system.errors import DataError
from system.whole_files import ASIDE, free_bytes, is_disk_full, size_text, whole_file

SETTINGS_NAME = "settings.json"
ABANDONED_SECONDS = 3600  # a file being written is finished within seconds


@dataclass(frozen=True)
class CacheEntry:
    """A sample's file: where it is or shall be, and why it must be built (None: it is there)."""

    index: int
    path: Path
    key: dict
    reason: str | None = None
    num_frames: int = 0  # to be built
    outdated: tuple[Path, ...] = ()  # what the new file replaces


class CacheFolder:
    """The files of one set of settings, in a folder of their own in cache_dir; `title` is for messages."""

    title = "cache"

    def __init__(self, cache_dir: str | Path, settings: dict) -> None:
        self.cache_dir, self.settings = Path(cache_dir), settings
        self.folder = self.cache_dir / digest(settings)[:16]

    def files_by_stem(self) -> dict[str, list[Path]]:
        """Return {name without its digest: files}; makes the folder. Raises DataError."""
        with self.faults_explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            names: dict[str, list[Path]] = {}
            for path in self.folder.glob("*.safetensors"):
                names.setdefault(stem_of(path), []).append(path)
            return names

    def look(self, index: int) -> tuple[dict[str, str], int]:
        """Return a sample's owner {data_root, sample_id}, whatever its content, and its number of frames."""
        raise NotImplementedError

    def entry(self, index: int, path: Path, key: dict, found: Sequence[Path]) -> CacheEntry:
        """Return a sample's entry, and why it must be built where its file is not there.

        `found`: the files of its name, whatever their digest.
        """
        if path in found and (metadata_of(path) or {}).get("key") == as_json(key):
            return CacheEntry(index, path, key)
        owner, num_frames = self.look(index)
        if path in found:
            return CacheEntry(index, path, key, "damaged", num_frames)
        reason, earlier = "new", {}  # {file of this very sample: its key}
        for other in found:
            metadata = metadata_of(other) or {}
            if metadata.items() >= owner.items():
                earlier[other] = json.loads(metadata["key"])
        for before in earlier.values():
            reason = f"{' and '.join(name for name in key if key[name] != before.get(name))} changed"
        return CacheEntry(index, path, key, reason, num_frames, tuple(earlier))

    def note_on_other_settings(self) -> str | None:
        """Return which settings are others than those of the entries that are there, or None."""
        others = [path for path in self.cache_dir.glob(f"*/{SETTINGS_NAME}") if path.parent != self.folder]
        if (self.folder / SETTINGS_NAME).exists() or not others:
            return None
        latest = max(others, key=lambda path: path.stat().st_mtime)
        old = {}
        with suppress(ValueError):
            old = json.loads(latest.read_text(encoding="utf-8"))
        names = sorted(name for name in {*old, *self.settings} if old.get(name) != self.settings.get(name))
        note = f"other {', '.join(names)} than in {latest.parent}: all samples are built anew"
        return f"{note}; delete that folder if it is not needed"

    def check_space(self, needed: int) -> None:
        """Raise DataError when the folder's disk has no room for so many bytes more."""
        if needed > (free := free_bytes(self.folder)):
            problem = f"needs {size_text(needed)} more, but the disk has {size_text(free)} free"
            fix = "make room, or give a folder elsewhere with --cache_dir"
            raise DataError(self.cache_dir, f"the {self.title} {problem}", fix)

    @contextmanager
    def written_aside(self, entry: CacheEntry) -> Iterator[Path]:
        """Yield the path to write an entry's file to; a whole file takes its name. Raises DataError."""
        with self.faults_explained():
            settings_path = self.folder / SETTINGS_NAME
            if not settings_path.exists():
                with whole_file(settings_path) as aside:
                    aside.write_text(json.dumps(self.settings, indent=1), encoding="utf-8")
            with whole_file(entry.path) as aside:
                yield aside
            for path in entry.outdated:
                path.unlink(missing_ok=True)

    @contextmanager
    def faults_explained(self) -> Iterator[None]:
        """Turn what the disk refuses in the block into a DataError."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            problem, fix = f"the {self.title} cannot be written ({error})", "give another --cache_dir"
            if is_disk_full(error):
                full = f"the disk became full ({size_text(free_bytes(self.folder))} free)"
                problem = f"{full} while the {self.title} was written"
                fix = "make room, or give a folder elsewhere with --cache_dir; what is built so far is kept"
            raise DataError(self.cache_dir, problem, fix) from error

    def remove_abandoned(self) -> None:
        """Remove what killed processes left half-written."""
        for path in (*self.folder.glob(f"*{ASIDE}"), *self.folder.glob(".tmp*")):
            with suppress(FileNotFoundError):  # another process was quicker
                if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                    path.unlink()


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """Yield a file to read tensors from, mapped until the block ends. Raises DataError."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        fix = "start again: the latent cache is checked then, and what is damaged is rebuilt"
        raise DataError(path, f"cannot be read ({error})", fix) from error


def metadata_of(path: Path) -> dict[str, str] | None:
    """Return a file's metadata, None where it is damaged: its length must be what its header says."""
    with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
        return file.metadata()
    return None


def stem_of(path: Path) -> str:
    """Return a file's name without its digest."""
    return path.name.rsplit("-", 1)[0]


def digest(value) -> str:
    return hashlib.blake2b(as_json(value).encode(), digest_size=16).hexdigest()


def as_json(value) -> str:
    return json.dumps(value, sort_keys=True)
