"""Whole shards of a store on the local disk, as many as fit: the last used. Processes and runs share them."""

import contextlib
import hashlib
import os
import time
from collections.abc import Collection
from pathlib import Path

from filelock import FileLock, Timeout

from system.errors import ConfigError, DataError, RunError
from system.whole_files import free_bytes, is_disk_full, size_text, whole_file

from .fetching import Store
from .index import PACK_AGAIN, Shard
from .layout import INDEX_NAME
from .order import SHARDS_PER_GROUP
from .store import DigestNotes, look_of

PART = ".part"  # ending of what is being fetched
ABANDONED_SECONDS = 3600.0
USED_SECONDS = 30.0  # how exactly it is known when a shard was last used


class ShardCache:
    """The shards of an address in a folder of their own in cache_dir, which holds at most max_bytes."""

    def __init__(self, store: Store, cache_dir: Path, max_bytes: int) -> None:
        self.store, self.cache_dir, self.max_bytes = store, cache_dir, max_bytes
        self.folder = cache_dir / hashlib.sha256(store.address.encode()).hexdigest()[:16]
        self.notes = DigestNotes(self.folder / "digested")
        self.protected: Collection[Path] = ()  # needed soon
        self._known: dict[str, list[int]] = {}
        self._used: dict[str, float] = {}

    def index_path(self) -> Path:
        """Return the store's index, fetched where it is another than before. Raises UserError, RunError."""
        try:
            return self._fetched_index()
        except OSError as error:
            found = self._disk_error(error)
            raise found if is_disk_full(error) else ConfigError(str(found)) from error

    def _fetched_index(self) -> Path:
        path, state_path = self.folder / INDEX_NAME, self.folder / "index_state"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "index.lock"):
            state = self.store.state_of(INDEX_NAME)
            with contextlib.suppress(OSError):
                if path.is_file() and state_path.read_text(encoding="utf-8") == state:
                    return path
            with whole_file(path) as aside:
                self.store.fetch(INDEX_NAME, self.store.size_of(INDEX_NAME), aside)
            with whole_file(state_path) as aside:
                aside.write_text(state, encoding="utf-8")
        return path

    def check_room(self, shards: Collection[Shard]) -> None:
        """Raise ConfigError where the cache cannot hold the shards that are read at a time, and one more."""
        sizes = sorted((shard.size for shard in shards), reverse=True)[: SHARDS_PER_GROUP + 1]
        if sum(sizes) > self.max_bytes:
            least = -(-sum(sizes) // 2**30)
            problem = f"{len(sizes)} shards at a time are {size_text(sum(sizes))}"
            raise ConfigError(f"--shard_cache_gb: {problem}: give {least} or more, twice that to read ahead")

    def has(self, shard: Shard) -> bool:
        """Return whether this process knows a shard to be here and whole."""
        return self._is_known(self.folder / shard.name)

    def path_of(self, shard: Shard) -> Path:
        """Return a shard's path, once it is here and whole. Raises DataError, RunError."""
        path = self.folder / shard.name
        if not self._is_known(path):
            with FileLock(self.folder / f"{shard.name}.lock"):
                self._take_in(shard, path)
        self._note_use(path)
        return path

    def try_fetch(self, shard: Shard) -> bool:
        """Fetch a shard unless another process is about it; return whether it is here."""
        path = self.folder / shard.name
        if not self._is_known(path):
            try:
                with FileLock(self.folder / f"{shard.name}.lock", timeout=0):
                    self._take_in(shard, path)
            except Timeout:
                return False
        self._note_use(path)
        return True

    def _is_known(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            return look_of(path) == self._known[path.name] if path.name in self._known else False
        return False

    def _take_in(self, shard: Shard, path: Path) -> None:
        """See that a shard is here and whole, under its lock."""
        if not path.is_file() or self.notes.problem(path, shard):  # else damaged here, and fetched again
            path.unlink(missing_ok=True)
            self._fetch(shard, path)
        with contextlib.suppress(OSError):
            self._known[path.name] = look_of(path)

    def _fetch(self, shard: Shard, path: Path) -> None:
        aside = path.with_name(path.name + PART)
        try:
            with FileLock(self.cache_dir / "room.lock"):
                self._make_room(shard.size)
                with aside.open("wb") as file:
                    file.truncate(shard.size)  # its room is taken from now on
            self.store.fetch(shard.name, shard.size, aside)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise self._disk_error(error) from error
        problem = self.notes.problem(aside, shard)
        if problem:
            aside.unlink(missing_ok=True)
            fix = f"upload it again, or {PACK_AGAIN}"
            raise DataError(self.store.path_of(shard.name), problem, fix)
        os.replace(aside, path)
        self.notes.note(shard, look_of(path))

    def _disk_error(self, error: OSError) -> RunError:
        if is_disk_full(error):
            problem = f"the disk became full ({size_text(free_bytes(self.cache_dir))} free)"
            fix = "make room, lower --shard_cache_gb, or give another --shard_cache_dir"
            return RunError(f"{self.cache_dir}: {problem}: {fix}")
        why = error.strerror or error
        return RunError(f"{self.cache_dir}: cannot be written ({why}): give another --shard_cache_dir")

    def _make_room(self, size: int) -> None:
        """Remove the shards used longest ago until `size` more bytes fit."""
        now, sizes, used = time.time(), {}, {}
        for path in (*self.cache_dir.glob("*/*.tar"), *self.cache_dir.glob(f"*/*.tar{PART}")):
            with contextlib.suppress(OSError):
                facts = path.stat()
                if path.name.endswith(PART):
                    if now - facts.st_mtime > ABANDONED_SECONDS:
                        path.unlink()
                        continue
                    used[path] = now
                else:
                    used[path] = _last_use(path, facts.st_mtime)
                sizes[path] = facts.st_size
        total = sum(sizes.values())
        candidates = sorted(sizes, key=lambda path: (path in self.protected, used[path]))
        for path in candidates:
            if total + size <= self.max_bytes:
                return
            if not path.name.endswith(PART):
                path.unlink(missing_ok=True)
                total -= sizes[path]

    def _note_use(self, path: Path) -> None:
        now = time.monotonic()
        if now - self._used.get(path.name, -USED_SECONDS) >= USED_SECONDS:
            self._used[path.name] = now
            with contextlib.suppress(OSError):
                os.utime(self.notes.path_of(path.name))


def _last_use(path: Path, otherwise: float) -> float:
    with contextlib.suppress(OSError):
        return (path.parent / "digested" / f"{path.name}.json").stat().st_mtime
    return otherwise
