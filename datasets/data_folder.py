"""What belongs to which video in a data folder, found by listing each of its folders once."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError
from .guidance_readers import TYPE_FOLDERS, Track, find_track

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
VIDEO_FOLDER = "videos"
REFERENCE_FOLDER = "reference_images"


@dataclass(frozen=True)
class Sample:
    """A video and the names of all that belongs to it."""

    sample_id: str
    video_paths: tuple[Path, ...]  # more than one is a fault
    reference_paths: tuple[Path, ...]  # any number but one is a fault
    guidance_names: dict[str, tuple[str, ...]]  # {type: entries of the type's folder}

    def video_path(self) -> Path:
        return _the_only(self.video_paths, Path(), "video")

    def reference_path(self, data_root: Path) -> Path:
        missing = data_root / REFERENCE_FOLDER / f"{self.sample_id}.jpg"
        return _the_only(self.reference_paths, missing, "reference image")


@dataclass(frozen=True)
class DataFolder:
    """A data folder's samples, sorted by id, and what can be told without opening a file."""

    root: Path
    samples: list[Sample]
    faults: list[DataError]  # of the folder as a whole
    strays: list[Path]  # entries that belong to no video

    def sample_faults(self, sample: Sample) -> list[DataError]:
        """What is missing of a sample, or there twice; not what a whole missing folder explains."""
        checks = [sample.video_path]
        if (self.root / REFERENCE_FOLDER).is_dir():
            checks.append(lambda: sample.reference_path(self.root))
        found = []
        for check in checks:
            try:
                check()
            except DataError as error:
                found.append(error)
        for type_name, names in sample.guidance_names.items():
            if not names:
                missing = type_dir(self.root, type_name) / sample.sample_id
                problem = f"no {type_name} for video {sample.sample_id!r}"
                fix = "put a file for each frame there, or remove the video"
                found.append(DataError(missing, problem, fix))
        return found

    def track(self, sample: Sample, type_name: str, music_feature_fps: float | None = None) -> Track:
        fps = music_feature_fps if type_name == "music" else None
        folder = type_dir(self.root, type_name)
        names = sample.guidance_names[type_name]
        return find_track(type_name, folder, sample.sample_id, names=names, fps=fps)


def type_dir(data_root: Path, type_name: str) -> Path:
    return data_root / TYPE_FOLDERS.get(type_name, type_name)


def list_data_folder(data_root: str | Path, guidance_types: Sequence[str]) -> DataFolder:
    """The samples of a folder. Raises DataError when it has no videos; other folders' lack is in faults."""
    root = Path(data_root)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "no such data folder"
        raise DataError(root, problem, "give the folder that holds videos/, poses/ and so on")
    faults: list[DataError] = []
    videos = _entries_by_id(root / VIDEO_FOLDER, VIDEO_SUFFIXES, faults)
    if faults:
        raise faults[0]
    if not videos:
        wanted = " ".join(VIDEO_SUFFIXES)
        raise DataError(root / VIDEO_FOLDER, "no videos in it", f"put video files there ({wanted})")
    references = _entries_by_id(root / REFERENCE_FOLDER, IMAGE_SUFFIXES, faults)
    listings = {root / REFERENCE_FOLDER: references}
    for name in guidance_types:
        folder = type_dir(root, name)
        listings[folder] = _entries_by_id(folder, (".npy",), faults, type_name=name)
    present = [name for name in guidance_types if type_dir(root, name).is_dir()]
    samples = [
        Sample(
            sample_id,
            tuple(root / VIDEO_FOLDER / name for name in videos[sample_id]),
            tuple(root / REFERENCE_FOLDER / name for name in references.get(sample_id, ())),
            {name: tuple(listings[type_dir(root, name)].get(sample_id, ())) for name in present},
        )
        for sample_id in sorted(videos)
    ]
    strays = [
        folder / name
        for folder, entries in listings.items()
        for sample_id in sorted(entries.keys() - videos.keys())
        for name in entries[sample_id]
    ]
    return DataFolder(root, samples, faults, strays)


def _entries_by_id(
    folder: Path, suffixes: tuple[str, ...], faults: list[DataError], *, type_name: str | None = None
) -> dict[str, list[str]]:
    """{sample id: entry names}: files of these suffixes and, for a guidance type, sub-folders.

    Ids are composed (NFC): macOS decomposes Korean names, in some folders only.
    """
    if not folder.is_dir():
        problem = "is a file, a folder was expected" if folder.exists() else "no such folder"
        fix = "make it" if type_name is None else f"make it, or take {type_name} out of --guidance_types"
        faults.append(DataError(folder, problem, fix))
        return {}
    found = defaultdict(list)
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if entry.name.startswith("."):
                continue
            if type_name is not None and entry.is_dir():
                found[unicodedata.normalize("NFC", entry.name)].append(entry.name)
            elif (
                suffix.lower() in suffixes
            ):  # a folder that is called a.mp4 is a fault, not to be passed over
                found[unicodedata.normalize("NFC", stem)].append(entry.name)
    return {sample_id: sorted(names) for sample_id, names in found.items()}


def _the_only(paths: tuple[Path, ...], missing: Path, what: str) -> Path:
    if not paths:
        problem = f"no {what} for video {missing.stem!r}"
        raise DataError(missing, problem, f"add it ({' '.join(IMAGE_SUFFIXES)})")
    if len(paths) > 1:
        problem = f"a second {what} of the same name as {paths[0].name}"
        raise DataError(paths[1], problem, "keep or rename one")
    return paths[0]
