"""Where samples are written: aside first, then moved into place, their metadata last.

A sample is done when its metadata is in place. A run that was stopped leaves at most a hidden folder, which
the next run finishes (all was written, not all moved) or removes (not all was written).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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

from .settings import Settings
from .sources import Source, is_same_file

PARTIAL_FOLDER = ".prepare_guidance"  # in the output folder: a rename must not cross file systems
DATA_SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, ".npy", ".json")
POSE_FORMATS = ("npy", "json")
UNSTATED = {"pose_format": "json"}  # settings that samples of earlier versions do not state


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
    def written_aside(self) -> Iterator[SampleFolder]:
        """Yield the sample aside, to be filled and then published; it is removed where that fails."""
        partial = self.start_aside()
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
        for folder in dict.fromkeys(path.parent for path in self.paths):
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                is_file_of_data = path.suffix.lower() in DATA_SUFFIXES and not path.is_dir()
                name = path.stem if is_file_of_data else path.name
                if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", self.name):
                    raise self._is_taken(path)

    def _is_taken(self, path: Path) -> DataError:
        problem = "is there already, but not as a sample that this command finished"
        fix = f"move it away, rename the source of {self.name!r}, or choose another --output_dir"
        return DataError(path, problem, fix)

    def publish(self, metadata: dict) -> None:
        """End the writing aside with the metadata, and move all into place."""
        partial = self.aside()
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


def open_output_dir(output_dir: Path) -> FolderLock:
    """Make the folder, take it, and finish or remove what a stopped run left aside. Raises DataError."""
    aside = output_dir / PARTIAL_FOLDER
    try:
        aside.mkdir(parents=True, exist_ok=True)
        probe = aside / ".probe"  # no sample has such a name
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        problem = f"cannot be written to ({error.strerror})"
        fix = "choose another --output_dir, or allow writing there"
        raise disk_error(output_dir, error) or DataError(output_dir, problem, fix) from error
    fix = "wait until it is done (more --num_workers are faster), or choose another --output_dir"
    lock = FolderLock(output_dir, aside / ".lock", holder="prepare_guidance.py", fix=fix)
    for partial_root in sorted(aside.iterdir()):
        for pose_format in POSE_FORMATS:  # the stopped run's may be another than this one's
            sample = SampleFolder(output_dir, partial_root.name, pose_format)
            partial = sample.aside()
            if partial.metadata_path.is_file() and (pose_format == "json" or partial.pose_path.is_file()):
                sample._move_into_place()
    _remove_unfinished(output_dir)
    return lock


def _remove_unfinished(output_dir: Path) -> None:
    """Remove what is aside and not ready to be moved; of no use to the next run."""
    aside = output_dir / PARTIAL_FOLDER
    for partial_root in aside.iterdir():
        if not SampleFolder(output_dir, partial_root.name).aside().metadata_path.is_file():
            shutil.rmtree(partial_root, ignore_errors=True)


def close_output_dir(output_dir: Path, lock: FolderLock) -> None:
    """Remove the hidden folder when nothing is left in it."""
    _remove_unfinished(output_dir)
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
