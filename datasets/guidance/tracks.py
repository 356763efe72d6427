"""Tracks in a data folder or given by path: which files are a track, of which kind, and their whole content.

What is missing, doubled or misnumbered is a DataError that names the file.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from datasets import packed_files
from datasets.transforms import Size
from datasets.unread import FOLDER, HIDDEN, NO_ENDING, Unread, is_hidden
from system.errors import DataError

from . import features, key_points, maps  # noqa: F401 (kinds register themselves; features first)
from .files import load_array, load_json
from .kind import KINDS, KINDS_OF_TYPES, GuidanceKind, kind_of_file, opened
from .track import META_NAME, Track

TYPE_FOLDERS = {"pose": "poses", "music": "music_features"}  # other types: the folder has the type's name
STATED = {"flippable", "coordinates", "width", "height"}  # in a meta.json, with or without a rate


def whole_suffixes() -> tuple[str, ...]:
    """Return the endings of files that have all rows of a video."""
    return tuple(suffix for kind in KINDS.values() for suffix in kind.whole_suffixes)


def find_track(
    type_name: str, type_dir: Path, sample_id: str, *, names: Iterable[str] = (), fps: float | None = None
) -> Track:
    """Return the track of a video. names: its entries in type_dir; fps: unless a meta.json states another.

    Raises DataError when there is none, or its files are of mixed kinds, misnumbered or have a bad meta.json.
    """
    paths = [type_dir / name for name in names]
    folder = next((path for path in paths if packed_files.is_dir(path)), None)
    whole = [path for path in paths if path != folder and kind_of_file(type_name, path, is_whole=True)]
    meta = stated_in(type_dir / META_NAME) | (stated_in(folder / META_NAME) if folder else {})
    fps = meta.get("fps", fps)
    files, unread = _data_files(type_name, folder) if folder else ([], ())
    if whole and files:
        raise DataError(whole[0], f"there is also a folder of {type_name} files, {folder.name}", "keep one")
    if len(whole) > 1:
        raise DataError(whole[0], f"there is also {whole[1].name}", "keep one")
    if whole:
        kind = _checked_kind(type_name, whole[0], kind_of_file(type_name, whole[0], is_whole=True))
        rows = opened(whole[0], kind.load_rows)
        shape = rows.shape if isinstance(rows, np.ndarray) else None
        return Track(type_name, kind, whole[0], None, len(rows), fps, meta, unread, shape)
    if not files:
        bound = KINDS_OF_TYPES.get(type_name)
        wanted = "a json, npy or image" if bound is None else f"a {_file_type(bound)}"
        missing = folder or type_dir / sample_id
        problem = f"no {type_name} files in it" if folder else f"no {type_name} for video {sample_id!r}"
        raise DataError(missing, problem, f"put {wanted} file for each frame there")
    kind = _checked_kind(type_name, folder, kind_of_file(type_name, files[0], is_whole=False))
    return Track(type_name, kind, folder, _numbered(files), len(files), fps, meta, unread)


def open_track(type_name: str, path: str | Path, *, fps: float | None = None) -> Track:
    """Return the track in a folder of files, or in one file, given by path."""
    path = Path(path)
    if not path.exists():
        raise DataError(path, f"no such {type_name} folder or file", "check the path")
    return find_track(type_name, path.parent, path.stem, names=[path.name], fps=fps)


def _data_files(type_name: str, folder: Path) -> tuple[list[Path], tuple[Unread, ...]]:
    """Return (the files of a track, what else lies in its folder)."""
    files, unread, kinds = [], [], {}
    for entry in packed_files.entries_of(folder):
        kind = kind_of_file(type_name, entry, is_whole=False)
        if is_hidden(entry.name):
            unread.append(Unread(entry, HIDDEN))
        elif entry.name != META_NAME and kind is not None:
            files.append(entry)
            kinds[kind] = entry
        elif entry.name != META_NAME:
            unread.append(Unread(entry, FOLDER if entry.is_dir() else NO_ENDING))
    if len(kinds) > 1:
        names = " and ".join(file.name for file in kinds.values())
        raise DataError(folder, f"files of different kinds ({names})", "keep one kind per folder")
    return files, tuple(sorted(unread))


def _file_type(kind: GuidanceKind) -> str:
    return (*kind.suffixes, *kind.whole_suffixes)[0][1:]


def _checked_kind(type_name: str, path: Path, kind: GuidanceKind) -> GuidanceKind:
    wanted = KINDS_OF_TYPES.get(type_name, kind)
    if kind is not wanted:
        problem = f"{type_name} must be {_file_type(wanted)} files, found {_file_type(kind)}"
        raise DataError(path, problem, _kind_fix(type_name, kind, wanted))
    return kind


def _kind_fix(type_name: str, kind: GuidanceKind, wanted: GuidanceKind) -> str:
    """Return what to do about files of another kind: images become a type of their own, never numbers."""
    if kind.name == "maps":
        own = f"images are a type of their own: name the folder {type_name}_maps"
        ours = f"extract {type_name} as {_file_type(wanted)}"
        return f"{own} and put {type_name}_maps in --guidance_types, or {ours}"
    if ".npy" in kind.suffixes and ".npy" in wanted.whole_suffixes:
        files = _file_type(wanted)
        return f"save all frames of a video as one {type_name} file, NAME.npy, or write {files} files"
    return f"write them as {_file_type(wanted)} files"


def _numbered(files: list[Path]) -> tuple[Path, ...]:
    """Return the files in the order of the last number in their names, which must be 0, 1, 2, ..."""
    by_number: dict[int, Path] = {}
    for file in sorted(files):
        digits = re.findall(r"\d+", file.stem)
        if not digits:
            fix = f"remove it, or name it by its frame, like frame_000{file.suffix}"
            raise DataError(file, "no frame number in its name", fix)
        number = int(digits[-1])
        if number in by_number:
            raise _doubled(file, by_number[number], number)
        by_number[number] = file
    numbers = sorted(by_number)
    missing = next((index for index, number in enumerate(numbers) if index != number), None)
    if missing == 0:
        problem = f"frame 0 is missing, the first is {numbers[0]}"
        raise DataError(by_number[numbers[0]], problem, "number frames from 0 without gaps")
    if missing is not None:
        before, others = by_number[missing - 1], numbers[-1] - len(numbers)
        more = f", and {others} more" if others else ""
        problem = f"frame {missing} is missing (after {before.name}){more}"
        raise DataError(before.parent, problem, "add the file: every frame of the video needs one")
    return tuple(by_number[number] for number in numbers)


def _doubled(file: Path, other: Path, number: int) -> DataError:
    fix = "remove one"
    if list(map(int, re.findall(r"\d+", other.stem))) != list(map(int, re.findall(r"\d+", file.stem))):
        last = "the last number in a name is the frame's"  # dance_007_2d.json is not frame 2
        fix = f"{last}: name them like frame_000{file.suffix}, or remove one"
    return DataError(file, f"frame {number} twice, also {other.name}", fix)


def stated_in(path: Path) -> dict:
    """Return what a meta.json states; {} where there is none. Raises DataError."""
    if not packed_files.is_file(path):
        return {}
    content = load_json(path)
    fps = content.get("fps") if isinstance(content, dict) else None
    if isinstance(content, dict) and "fps" not in content and STATED & content.keys():
        return content
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < 1e6:
        fix = 'write the rows per second, as {"fps": 30}, or remove the file'
        raise DataError(path, f"fps must be a positive number, got {fps!r}", fix)
    return content | {"fps": float(fps)}


# ---- whole tracks, for sampling ----


class _SinglePose(key_points.KeyPoints):
    """Key points of a file that has no frames."""

    def load_rows(self, path: Path) -> np.ndarray:
        return super().load_rows(path)[None]


def open_pose(path: str | Path) -> Track:
    """Return the track of a single pose: a JSON file of any name, a .npy file [K, 3], or another track's."""
    path = Path(path).absolute()
    meta = stated_in(path.parent.parent / META_NAME) | stated_in(path.parent / META_NAME)
    if path.suffix.lower() == ".json" and path.is_file():
        return Track("pose", KINDS_OF_TYPES["pose"], path.parent, (path,), 1, None, meta)
    if path.suffix.lower() == ".npy" and path.is_file() and len(shape := load_array(path).shape) == 2:
        return Track("pose", _SinglePose(), path, None, 1, None, meta, shape=(1, *shape))
    if path.is_file() and path.suffix.lower() != ".npy":
        raise DataError(path, "is no pose file", "give a JSON file, an npy file or a folder of pose files")
    return open_track("pose", path)


def read_pose_folder(path: str | Path, num_keypoints: int, *, frame_size: Size | None = None) -> np.ndarray:
    """Return key points float32 [N, K, 3], x and y in 0..1 of the frame, of a folder or one .npy file.

    frame_size: (height, width) of the poses' own video, needed where they are in pixels.
    """
    track = open_track("pose", path)
    return read_rows(track, range(track.num_rows), num_keypoints, frame_size)


def read_music(path: str | Path, num_features: int) -> np.ndarray:
    """Return music features float32 [N, D] or [N, D, H, W] of a folder of .npy files or one file."""
    track = open_track("music", path)
    return read_rows(track, range(track.num_rows), num_features)


def read_rows(
    track: Track, numbers: Sequence[int], num_channels: int, frame_size: Size | None = None
) -> np.ndarray:
    """Return rows of a track as training takes them, [n, ...], in terms of the frame. Raises DataError."""
    read = functools.cache(track.kind.reader(track, num_channels))
    units = track.kind.units(track, lambda asked: [read(row) for row in range(track.num_rows)])  # by all
    return track.kind.values(track, numbers, [read(int(row)) for row in numbers], units, frame_size)
