"""A checked data folder written as shards and their index; stopped, it goes on where it was."""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.checking.looks import sample_looks
from datasets.data_folder import (
    METADATA_FOLDER,
    REFERENCE_FOLDER,
    VIDEO_FOLDER,
    DataFolder,
    Sample,
    type_dir,
)
from datasets.guidance.track import META_NAME
from system.errors import DataError, RunError
from system.folder_lock import FolderLock
from system.processes import map_in_processes
from system.whole_files import ASIDE, free_bytes, is_disk_full, size_text, whole_file

from .index import SampleRow, Shard, ShardIndex, in_words, may_be_index, read_about, write_index
from .layout import INDEX_NAME, member_name, shard_name

PLAN_VERSION = 1  # raised when shards are written otherwise
SHARD_PATTERN = "[0-9]" * 6 + ".tar"
WORK_FOLDER = "packing"  # in the folder of shards, until all is done
COPY_BYTES = 2**20
TAR_FORMAT = tarfile.PAX_FORMAT
OF_WORK = re.compile(r"\d+\.tar\..+|data_report\.json.*|data_facts\.sqlite.*|\..+|.*\.[0-9a-f]{8}\.tmp")
LEFT_ASIDE = re.compile(rf"(\d{{6}}\.tar|index\.sqlite|data_report\.json)\.[0-9a-f]{{8}}{re.escape(ASIDE)}")
Facts = Callable[[str], tuple[int, bytes | None, bytes | None]]


@dataclass(frozen=True)
class PlannedSample:
    """A sample to be packed: its number in the index, and its files {path in the data folder: size}."""

    number: int
    sample_id: str
    look: str
    files: dict[str, int]


@dataclass(frozen=True)
class PlannedShard:
    """The samples of a shard in the order in which they lie there."""

    number: int
    samples: tuple[PlannedSample, ...]

    @property
    def fingerprint(self) -> str:
        words = [PLAN_VERSION, self.number, [(one.number, one.sample_id, one.look) for one in self.samples]]
        return hashlib.blake2b(json.dumps(words).encode(), digest_size=16).hexdigest()

    @property
    def num_bytes(self) -> int:
        return sum(size for sample in self.samples for size in sample.files.values())


# ---- the plan ----


def plan_shards(folder: DataFolder, samples: Sequence[Sample], shard_bytes: int) -> list[PlannedShard]:
    """Return which samples of a data folder come into which shard."""
    looks = sample_looks(DataFolder(folder.root, list(samples), [], []), b"")
    common = _common_files(folder.root, samples[0])
    planned = [
        PlannedSample(number, sample.sample_id, look.hex(), {**_files_of(sample), **common})
        for number, (sample, look) in enumerate(zip(samples, looks, strict=True))
    ]
    return into_shards(planned, shard_bytes)


def into_shards(planned: Sequence[PlannedSample], shard_bytes: int) -> list[PlannedShard]:
    """Return shards of about `shard_bytes` of samples, ordered by a digest of their names.

    Neighbours in a data folder are often one dancer or one song.
    """
    shards, part, size = [], [], 0
    for sample in sorted(planned, key=lambda one: (zlib.crc32(one.sample_id.encode()), one.sample_id)):
        part.append(sample)
        size += sum(sample.files.values())
        if size >= shard_bytes:
            shards.append(PlannedShard(len(shards), tuple(part)))
            part, size = [], 0
    return shards + ([PlannedShard(len(shards), tuple(part))] if part else [])


def _common_files(root: Path, sample: Sample) -> dict[str, int]:
    """Return the meta.json of each type, which counts for all of its tracks."""
    paths = [type_dir(root, name) / META_NAME for name in sample.guidance_names]
    return {_relative(path, root): path.stat().st_size for path in paths if path.is_file()}


def _files_of(sample: Sample) -> dict[str, int]:
    """Return {path in the data folder: size} of all that belongs to a sample. Raises DataError."""
    folders = {VIDEO_FOLDER: sample.video_names, REFERENCE_FOLDER: sample.reference_names}
    folders |= {type_dir(sample.root, name).name: names for name, names in sample.guidance_names.items()}
    folders[METADATA_FOLDER] = (f"{sample.sample_id}.json",)
    files = {}
    for folder, names in folders.items():
        for path in (sample.root / folder / name for name in names):
            if path.is_dir():
                files |= {_relative(one, sample.root): one.stat().st_size for one in sorted(path.iterdir())
                          if one.is_file()}  # fmt: skip
            elif path.is_file():
                files[_relative(path, sample.root)] = path.stat().st_size
    return files


def _relative(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(path, "its name is no UTF-8, which a shard needs", "rename it") from error
    return name


# ---- a shard ----


class _Hashed:
    """A file to write to, its content digested on the way, and a part's by itself."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file, self.whole, self.part, self.place = file, hashlib.sha256(), hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.whole.update(content)
        self.part.update(content)
        self.place += len(content)
        return self.file.write(content)

    def tell(self) -> int:
        return self.place

    def begin_part(self) -> None:
        self.part = hashlib.sha256()


def write_shard(root: Path, output_dir: Path, plan: PlannedShard) -> str:
    """Write a shard, and what the index needs of it beside it; return "", or what hindered it."""
    try:
        note_path = note_of(output_dir, plan)
        rows, path = [], output_dir / shard_name(plan.number)
        with whole_file(path) as aside, aside.open("wb") as file:
            hashed = _Hashed(file)
            with tarfile.TarFile(fileobj=hashed, mode="w", format=TAR_FORMAT) as tar:
                for sample in plan.samples:
                    start = hashed.place
                    hashed.begin_part()
                    files = {path: _add(tar, root, sample, path) for path in sample.files}
                    rows.append([sample.number, start, hashed.place - start, hashed.part.hexdigest(), files])
            note = {"size": hashed.place, "sha256": hashed.whole.hexdigest(), "samples": rows}
        with whole_file(note_path) as aside:
            aside.write_bytes(zlib.compress(json.dumps(note).encode(), 1))
        return ""
    except DataError as error:
        return str(error)
    except OSError as error:
        if is_disk_full(error):
            return f"{output_dir}: the disk is full; make room, then start the same command again"
        return f"{error.filename or output_dir}: {error.strerror or error}; see to it, then start again"


def _add(tar: tarfile.TarFile, root: Path, sample: PlannedSample, path: str) -> tuple[int, int]:
    """Add a file to a shard; return its place there: offset, size. Raises DataError, OSError."""
    size = sample.files[path]
    info = tarfile.TarInfo(member_name(sample.sample_id, path))
    with (root / path).open("rb") as file:
        facts = os.fstat(file.fileno())
        info.size, info.mtime = size, int(facts.st_mtime)
        if facts.st_size != size:
            raise DataError(root / path, "changed while it was packed", "start the same command again")
        tar.addfile(info, file)
    return tar.offset - -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, size


def note_of(output_dir: Path, plan: PlannedShard) -> Path:
    return output_dir / WORK_FOLDER / f"{shard_name(plan.number)}.{plan.fingerprint}"


# ---- all of it ----


@contextlib.contextmanager
def locked_output(output_dir: Path, names: Collection[str], *, of_latents: bool = False) -> Iterator[None]:
    """Make the folder of shards of samples of these names, and keep other programs from it in the block.

    Raises DataError where the folder has shards of other data, has files of another program that would be
    lost, or cannot be written.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        fix = "wait for it, or give another folder"
        lock = FolderLock(output_dir, output_dir / ".lock", holder="pack_guidance.py", fix=fix)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise DataError(output_dir, problem, "give another --output_dir") from error
    try:
        for path in (output_dir / INDEX_NAME, output_dir / WORK_FOLDER):
            if _is_foreign(path):
                fix = "move it away, or give another --output_dir"
                raise DataError(path, "is of another program and would be lost", fix)
        if not _is_of(output_dir, frozenset(names), of_latents):
            fix = "give another --output_dir, or remove what is there"
            which = "of other data" if (output_dir / INDEX_NAME).is_file() else "without an index"
            raise DataError(output_dir, f"has shards {which}", fix)
        yield
    finally:
        lock.release()


def _is_foreign(path: Path) -> bool:
    """Return whether an index, whole or cut short, or a work folder was not written by packing."""
    if path.name == WORK_FOLDER:
        return path.exists() and not (
            path.is_dir() and all(OF_WORK.fullmatch(one.name) for one in path.iterdir())
        )
    try:
        return path.exists() and not (path.is_file() and may_be_index(path))
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror or error})", "give another folder") from error


def _is_of(output_dir: Path, names: Collection[str], of_latents: bool) -> bool:
    """Return whether the shards in a folder, if any, are of such samples, or a stopped run's."""
    index_path = output_dir / INDEX_NAME
    with contextlib.suppress(DataError):  # of a broken index: it is written again
        if index_path.is_file():
            index = ShardIndex(index_path)
            return ("latents" in index.about) == of_latents and any(name in names for name in index.names)
    is_stopped = (output_dir / WORK_FOLDER).is_dir()
    return is_stopped or index_path.is_file() or not any(output_dir.glob(SHARD_PATTERN))


class Packing:
    """The shards of a data folder, or of a folder of a latent cache, in `output_dir`."""

    def __init__(self, root: Path, output_dir: Path, plans: Sequence[PlannedShard]) -> None:
        self.root, self.output_dir, self.plans = root, output_dir, plans

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(plan.fingerprint for plan in self.plans).encode()).hexdigest()

    def count(self) -> str:
        """Return words for how many samples and shards there are, and how large they are."""
        num_samples = sum(len(plan.samples) for plan in self.plans)
        num_bytes = sum(plan.num_bytes for plan in self.plans)
        return f"{in_words(num_samples, len(self.plans))}, {size_text(num_bytes)}"

    @staticmethod
    def left_out_before(output_dir: Path) -> list[str] | None:
        """Return the samples that were left out of the shards there; None where there is no whole index."""
        with contextlib.suppress(DataError):
            return read_about(output_dir / INDEX_NAME)["left_out"]
        return None

    def is_done(self, settings: dict) -> bool:
        """Return whether the index is of this very data, checked by these settings, and its shards are there.

        A shard is only looked at: what was changed inside it, --verify finds.
        """
        with contextlib.suppress(DataError):
            index = ShardIndex(self.output_dir / INDEX_NAME)
            if (index.about["plan"], index.about["settings"]) != (self.fingerprint, settings):
                return False
            paths = [(self.output_dir / shard.name, shard.size) for shard in index.shards]
            return all(path.is_file() and path.stat().st_size == size for path, size in paths)
        return False

    def write_shards(self, num_workers: int | None) -> list[str]:
        """Write the shards that are not there; return what hindered it. Raises RunError for want of room."""
        work = self.output_dir / WORK_FOLDER
        work.mkdir(parents=True, exist_ok=True)
        (self.output_dir / INDEX_NAME).unlink(missing_ok=True)  # of other shards
        for left in self.output_dir.glob(f"*{ASIDE}"):  # by a run that was killed
            if LEFT_ASIDE.fullmatch(left.name):  # else it is the user's
                left.unlink()
        missing = [plan for plan in self.plans if not self._is_written(plan)]
        needed, free = sum(plan.num_bytes for plan in missing), free_bytes(self.output_dir)
        if needed > free:
            problem = f"the shards take {size_text(needed)}, the disk has {size_text(free)} free"
            raise RunError(f"{self.output_dir}: {problem}: make room, or give another --output_dir")
        write = functools.partial(write_shard, self.root, self.output_dir)
        problems = map_in_processes(
            write, missing, num_workers=num_workers, title="packing", crashed=_crashed
        )  # fmt: skip
        return [problem for problem in problems if problem]

    def _is_written(self, plan: PlannedShard) -> bool:
        path, note = self.output_dir / shard_name(plan.number), self._note(plan)
        return note is not None and path.is_file() and path.stat().st_size == note["size"]

    def _note(self, plan: PlannedShard) -> dict | None:
        with contextlib.suppress(OSError, ValueError, zlib.error):
            return json.loads(zlib.decompress(note_of(self.output_dir, plan).read_bytes()))
        return None

    def write_index(self, about: dict, facts: Facts, verdict: Callable[[str], str]) -> None:
        """Write the index of shards that are all there, from what is known of a sample by its name.

        facts: number of frames, frame table, moments; verdict: the check's warnings.
        """
        notes = [self._note(plan) for plan in self.plans]
        shards = [
            Shard(plan.number, shard_name(plan.number), note["size"], note["sha256"])
            for plan, note in zip(self.plans, notes, strict=True)
        ]
        rows = self._rows(notes, facts, verdict)
        with whole_file(self.output_dir / INDEX_NAME) as aside:
            aside.unlink()
            write_index(aside, {**about, "plan": self.fingerprint}, shards, rows)
        names = {shard.name for shard in shards}
        for path in self.output_dir.glob(SHARD_PATTERN):  # of an earlier, larger folder
            if path.name not in names:
                path.unlink()
        shutil.rmtree(self.output_dir / WORK_FOLDER, ignore_errors=True)

    def _rows(self, notes: list[dict], facts: Facts, verdict: Callable) -> Iterator[SampleRow]:
        """Yield the index's rows in the order of their numbers."""
        places = {}
        for plan, note in zip(self.plans, notes, strict=True):
            for sample, (number, *place, files) in zip(plan.samples, note["samples"], strict=True):
                files = {path: tuple(part) for path, part in files.items()}
                places[number] = sample.sample_id, plan.number, *place, files
        for number in sorted(places):
            name, shard, offset, size, sha256, files = places[number]
            frames, table, moments = facts(name)
            yield SampleRow(
                number, name, shard, offset, size, frames, sha256, verdict(name), files, table, moments
            )


def _crashed(plan: PlannedShard) -> str:
    return f"{shard_name(plan.number)}: the process that wrote it died; start the same command again"
