"""Where samples are written: aside first, then moved into place, their metadata last.

A sample is done when its metadata is in place. A run that was stopped leaves at most a hidden folder, which
the next run finishes (all was written, not all moved) or removes (not all was written).
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.data_folder import (
    IMAGE_SUFFIXES,
    METADATA_FOLDER,
    REFERENCE_FOLDER,
    VIDEO_FOLDER,
    VIDEO_SUFFIXES,
)
from datasets.guidance.files import load_json
from datasets.guidance.tracks import TYPE_FOLDERS
from system.errors import DataError
from system.folder_lock import FolderLock
from system.whole_files import is_disk_full, rename, whole_file

from .parts import Part
from .settings import Settings
from .sources import Source, is_same_file

PARTIAL_FOLDER = ".prepare_guidance"  # in the output folder: a rename must not cross file systems
OWNER_FILE = ".owner.json"  # in the folder of a sample that is being made
PROCESS = uuid.uuid4().hex  # this one, among all machines'
STARTING_SECONDS = 10.0  # for which a part may hold the whole folder's lock, and the other way round
LARGE_FOLDER = 2000  # entries
DATA_SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, ".npy", ".json")
POSE_FORMATS = ("npy", "json")
UNSTATED = {"pose_format": "json", "pose_stride": 1}  # settings that samples of earlier versions do not state


@dataclass(frozen=True)
class SampleFolder:
    """The files of one sample, below a root in place or aside."""

    root: Path
    name: str
    pose_format: str = "json"  # one of POSE_FORMATS

    @property
    def video_path(self) -> Path:
        return self.root / VIDEO_FOLDER / f"{self.name}.mp4"

    @property
    def pose_path(self) -> Path:
        """A folder of JSON files, one per frame, or one .npy file."""
        return self.root / TYPE_FOLDERS["pose"] / (self.name + ".npy" * (self.pose_format == "npy"))

    @property
    def music_path(self) -> Path:
        return self.root / TYPE_FOLDERS["music"] / f"{self.name}.npy"

    @property
    def reference_path(self) -> Path:
        return self.root / REFERENCE_FOLDER / f"{self.name}.png"

    @property
    def metadata_path(self) -> Path:
        return self.root / METADATA_FOLDER / f"{self.name}.json"

    @property
    def paths(self) -> list[Path]:
        """All files and folders, the metadata last."""
        return [self.video_path, self.pose_path, self.music_path, self.reference_path, self.metadata_path]

    def aside(self) -> SampleFolder:
        return SampleFolder(self.root / PARTIAL_FOLDER / self.name, self.name, self.pose_format)

    def read_metadata(self) -> dict | None:
        """Return what the sample remembers of its making, or None where it is not in place."""
        if not self.metadata_path.is_file():
            return None
        metadata = load_json(self.metadata_path)
        if not isinstance(metadata, dict):
            raise DataError(self.metadata_path, "is not a sample's metadata", "remove the file")
        return metadata

    @contextlib.contextmanager
    def written_aside(self, source_file: str) -> Iterator[SampleFolder]:
        """Yield the sample aside, to be filled and then published; it is removed where that fails.

        source_file: name of the video that it is made from.
        """
        partial = self.start_aside()
        owner = {"file": source_file, "process": PROCESS}
        (partial.root / OWNER_FILE).write_text(json.dumps(owner), encoding="utf-8")
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial.root, ignore_errors=True)
            raise

    def start_aside(self) -> SampleFolder:
        """Return the sample's empty folders aside. Raises DataError where the name is taken, here or there.

        Two videos of a run may want one name: dance.mp4 in pieces and dance_000.mp4. The folder is claimed
        first, as the other may come into place at any moment.
        """
        partial = self.aside()
        try:
            partial.root.mkdir(parents=True)
        except FileExistsError:
            problem = "is being made from another video of this run, too"
            raise DataError(self.video_path, problem, f"rename the source of {self.name!r}") from None
        try:
            self.check_free()
        except DataError:
            shutil.rmtree(partial.root, ignore_errors=True)
            raise
        for path in partial.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        if self.pose_format == "json":
            partial.pose_path.mkdir()
        return partial

    def check_free(self) -> None:
        """Raise DataError where a file or folder of this name is, with whatever ending a sample may have."""
        name = unicodedata.normalize("NFC", self.name)
        for path in self.paths:
            if path.exists():  # also where its folder was listed before
                raise self._is_taken(path)
            if (found := _entry_named(path.parent, name)) is not None:
                raise self._is_taken(found)

    def _is_taken(self, path: Path) -> DataError:
        problem = "is there already, but not as a sample that this command finished"
        fix = f"move it away, rename the source of {self.name!r}, or choose another --output_dir"
        return DataError(path, problem, fix)

    def read_owner(self) -> dict:
        """Return what is known of the maker of a sample aside: "file", its source, and "process"."""
        with contextlib.suppress(DataError):
            owner = load_json(self.root / OWNER_FILE)
            return owner if isinstance(owner, dict) else {}
        return {}

    def publish(self, metadata: dict) -> None:
        """End the writing aside with the metadata, and move all into place."""
        partial = self.aside()
        if partial.read_owner().get("process", PROCESS) != PROCESS:  # this one was given up as dead
            raise DataError(self.video_path, "is made by another process by now", "see what that one makes")
        with whole_file(partial.metadata_path) as path:
            path.write_text(json.dumps(metadata, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self._move_into_place()

    def _move_into_place(self) -> None:
        """Go on where a stopped run was: what has left the partial folder is in place."""
        partial = self.aside()
        for source, target in zip(partial.paths, self.paths, strict=True):
            if not source.exists():
                continue
            if target.exists():
                raise self._is_taken(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            rename(source, target)
        shutil.rmtree(partial.root, ignore_errors=True)


_known_names: dict[Path, np.ndarray] = {}  # of large folders: hashes of the names when last listed, in order


def _entry_named(folder: Path, name: str) -> Path | None:
    """Return what a sample of this name has in a folder, with whatever ending; None: nothing.

    What a large folder holds is kept: to list it for every sample would take longer than the sample. What
    comes later is made by this command, under the names that a sample has.
    """
    known, digest = _known_names.get(folder), hash(name)
    if known is not None and known[np.searchsorted(known, digest) % len(known)] != digest:
        return None
    digests, found = array.array("q"), None
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            is_file_of_data = suffix.lower() in DATA_SUFFIXES and not entry.is_dir()
            of_sample = unicodedata.normalize("NFC", stem if is_file_of_data else entry.name)
            digests.append(hash(of_sample))
            found = Path(entry.path) if of_sample == name else found
    if len(digests) > LARGE_FOLDER:
        _known_names[folder] = np.sort(np.frombuffer(digests, np.int64))
    return found


# ---- What of a source is prepared already, by the metadata of its samples ----


def piece_name(source_name: str, piece: int, num_pieces: int) -> str:
    """Return the sample's name: a video in one piece keeps its own."""
    return source_name if num_pieces == 1 else f"{source_name}_{piece:03d}"


def finished_pieces(source: Source, settings: Settings, output_dir: Path) -> tuple[set[str], int | None]:
    """Return (names of the source's finished samples, how many there are to be, if one is finished).

    Raises DataError when a sample of that name was made from another source, or with other settings.
    """
    num_pieces = None
    for name in (source.name, piece_name(source.name, 0, 2)):
        sample = SampleFolder(output_dir, name, settings.pose_format)
        metadata = _matching_metadata(sample, source, settings, is_own=name == source.name)
        if metadata is not None:
            num_pieces = metadata["num_pieces"]
    names = [piece_name(source.name, piece, num_pieces) for piece in range(num_pieces or 0)]
    return {name for name in names if is_finished(source, settings, output_dir, name)}, num_pieces


def is_finished(source: Source, settings: Settings, output_dir: Path, name: str) -> bool:
    """Return whether a piece of the source is finished, also where its first is not. Raises as above."""
    sample = SampleFolder(output_dir, name, settings.pose_format)
    return _matching_metadata(sample, source, settings) is not None


def _matching_metadata(
    sample: SampleFolder, source: Source, settings: Settings, *, is_own: bool = True
) -> dict | None:
    """Return the metadata of a finished sample; None where it is not there.

    is_own: whether a sample of this name can only be this source's; dance_000 may be that of dance_000.mp4.
    """
    metadata = sample.read_metadata()
    if metadata is None:
        return None
    made_from = metadata.get("source")
    if not isinstance(made_from, dict) or "num_pieces" not in metadata:
        raise _stale(sample, "was not made by prepare_guidance.py")
    if made_from.get("file") != source.path.name:
        if not is_own:
            return None
        found = made_from.get("file")
        raise _stale(sample, f"was made from another video ({found!r}, not {source.path.name!r})")
    if not is_same_file(source.path, made_from):
        raise _stale(sample, f"was made from an earlier {source.path.name}, which has changed since")
    if source.sound_path is not None and metadata.get("sound") is not None:
        if not is_same_file(source.sound_path, metadata["sound"]):
            raise _stale(sample, f"was made with another sound than {source.sound_path.name} is now")
    was, now = UNSTATED | metadata.get("settings", {}), settings.fingerprint()
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise _stale(sample, f"was made with {key} {was.get(key)}, not {now.get(key)}")
    if source.is_sound_forced and metadata.get("sound") is None:
        raise _stale(sample, f"was made with the video's own sound, not with {source.sound_path.name}")
    missing = next((path for path in sample.paths if not path.exists()), None)
    if missing is not None:
        problem = f"is missing, though sample {sample.name!r} was finished"
        raise DataError(missing, problem, "restore it, or remove the rest of the sample to have it remade")
    return metadata


def _stale(sample: SampleFolder, problem: str) -> DataError:
    parts = "videos, poses, music_features, reference_images and metadata"
    fix = f"choose another --output_dir, or remove {sample.name!r} from its {parts}"
    return DataError(sample.metadata_path, f"this sample {problem}", fix)


# ---- The output folder ----


def open_output_dir(output_dir: Path, part: Part | None = None) -> FolderLock:
    """Make the folder, take it, and finish or remove what a stopped run left aside. Raises DataError.

    part: what of it is taken; others may then write there, too.
    """
    aside = output_dir / PARTIAL_FOLDER
    try:
        aside.mkdir(parents=True, exist_ok=True)
        probe = aside / f".probe_{PROCESS}"  # no sample has such a name
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        problem = f"cannot be written to ({error.strerror})"
        fix = "choose another --output_dir, or allow writing there"
        raise disk_error(output_dir, error) or DataError(output_dir, problem, fix) from error
    lock = _lock(output_dir, lock_name(part))
    try:
        _refuse_others(output_dir, part)
    except BaseException:
        lock.release()
        raise
    _finish_moves(output_dir, _left_aside(output_dir, part))
    _remove_unfinished(output_dir, part)
    return lock


def _finish_moves(output_dir: Path, roots: Iterable[Path]) -> None:
    """Move samples aside into place that are ready for it."""
    for root in roots:
        for pose_format in POSE_FORMATS:  # the stopped run's may be another than this one's
            sample = SampleFolder(output_dir, root.name, pose_format)
            partial = sample.aside()
            if partial.metadata_path.is_file() and (pose_format == "json" or partial.pose_path.is_file()):
                sample._move_into_place()


def lock_name(part: Part | None) -> str:
    return ".lock" if part is None else f".lock_{part.file_name}"


def _lock(output_dir: Path, name: str, wait_seconds: float = 0) -> FolderLock:
    fix = "wait until it is done (more --num_workers are faster), or choose another --output_dir"
    holder = "prepare_guidance.py" + (f" (--shard {name[6:].replace('_of_', '/')})" if name[5:] else "")
    path = output_dir / PARTIAL_FOLDER / name
    return FolderLock(output_dir, path, holder=holder, fix=fix, wait_seconds=wait_seconds)


def _refuse_others(output_dir: Path, part: Part | None) -> None:
    """Raise DataError where a run is at work that may make the same samples.

    Each has its own lock by now and looks for the others': of two that start at once, at least one sees the
    other. A part that looks holds the other lock for a moment, which is waited for.
    """
    names = {path.name for path in (output_dir / PARTIAL_FOLDER).glob(".lock*")}
    if part is not None:
        names -= {name for name in names if name.endswith(f"_of_{part.count}")}
    for name in sorted(names - {lock_name(part)}):
        _lock(output_dir, name, STARTING_SECONDS).release()


def _left_aside(output_dir: Path, part: Part | None) -> list[Path]:
    """Return the folders of samples aside that are this run's, made by runs before it or by its workers."""
    roots = sorted(path for path in (output_dir / PARTIAL_FOLDER).iterdir() if path.is_dir())
    return roots if part is None else [root for root in roots if _is_of_part(output_dir, root.name, part)]


def _is_of_part(output_dir: Path, name: str, part: Part) -> bool:
    """Return whether a sample aside is of a video of this part, by its name where nothing is noted."""
    made_from = SampleFolder(output_dir, name).aside().read_owner().get("file")
    if made_from is not None:
        return part.holds(unicodedata.normalize("NFC", Path(made_from).stem))
    return part.holds(name) or part.holds(re.sub(r"_\d{3,}$", "", name))


def tidy_aside(output_dir: Path, source: Source) -> None:
    """Finish or remove what a process that has died left aside of a video."""
    for root in _left_aside(output_dir, None):
        if SampleFolder(output_dir, root.name).aside().read_owner().get("file") == source.path.name:
            with contextlib.suppress(DataError):
                _finish_moves(output_dir, [root])
            shutil.rmtree(root, ignore_errors=True)


def _remove_unfinished(output_dir: Path, part: Part | None = None) -> None:
    """Remove what is aside and not ready to be moved; of no use to the next run."""
    for partial_root in _left_aside(output_dir, part):
        if not SampleFolder(output_dir, partial_root.name).aside().metadata_path.is_file():
            shutil.rmtree(partial_root, ignore_errors=True)


def close_output_dir(output_dir: Path, lock: FolderLock, part: Part | None = None) -> None:
    """Remove the hidden folder when nothing is left in it."""
    _remove_unfinished(output_dir, part)
    lock.release()
    with contextlib.suppress(OSError):  # something is left: the next run's
        (output_dir / PARTIAL_FOLDER).rmdir()


def count_music_features(output_dir: Path) -> int | None:
    """Return the features per row of music of a finished sample; None where there is no sample."""
    for path in sorted((output_dir / METADATA_FOLDER).glob("*.json")):
        with contextlib.suppress(DataError):  # of a sample that is none of this run's, else it has been named
            metadata = load_json(path)
            if isinstance(metadata, dict) and isinstance(metadata.get("music_features"), dict):
                return metadata["music_features"].get("channels")
    return None


def disk_error(output_dir: Path, error: BaseException) -> DataError | None:
    """Return the fault of a full disk, or None where the error is another one."""
    if not is_disk_full(error):
        return None
    fix = "free some space and run the same command again: finished samples are kept"
    return DataError(output_dir, "the disk is full", fix)
