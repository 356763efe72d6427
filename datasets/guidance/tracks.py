"""Guidance files: which belong to which frame, and the reading of features (npy) and maps (images).

A track is one video's guidance of one type. Its rows belong to the video's frames by number, or, where a rate
is stated, by time. Nothing is filled in: what is missing or broken is a DataError that names the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from system.errors import DataError

from .key_points import load_json, normalize_key_points, read_all_key_points, read_key_points

TYPE_FOLDERS = {"pose": "poses", "music": "music_features"}  # other types: the folder has the type's name
TYPE_KINDS = {"pose": "key_points", "music": "features"}  # other types: whatever the files are
KIND_SUFFIXES = {
    "key_points": (".json",),
    "features": (".npy",),
    "maps": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"),
}
SUFFIX_KINDS = {suffix: kind for kind, suffixes in KIND_SUFFIXES.items() for suffix in suffixes}
META_NAME = "meta.json"


@dataclass(frozen=True)
class Track:
    """One video's guidance files of one type."""

    type_name: str
    kind: str  # "key_points" | "features" | "maps"
    path: Path  # the folder of files, one a row, or the one .npy file
    files: tuple[Path, ...] | None  # None: path is one .npy file [N, D] or [N, D, H, W]
    num_rows: int
    fps: float | None  # rows a second, where stated

    def file(self, row: int) -> Path:
        return self.path if self.files is None else self.files[row]

    def rows_at(self, frames: np.ndarray, frame_seconds: np.ndarray) -> np.ndarray:
        """The row of each frame: the same number, or the nearest in time.

        frame_seconds: the whole video's, [N]. Raises DataError when not every frame of the video has a row.
        """
        num_frames = len(frame_seconds)
        if self.fps is None:
            if self.num_rows != num_frames:
                raise self._miscounted(num_frames)
            return np.asarray(frames)
        last = frame_seconds[-1] * self.fps
        if last > self.num_rows:  # one row period of grace: feature extractors round the end either way
            raise DataError(
                self.path,
                f"ends at {self.num_rows / self.fps:.2f} s ({self.num_rows} rows at {self.fps:g} a second), "
                f"the video's last frame is at {frame_seconds[-1]:.2f} s",
                f"extract it for the whole video, or correct the rate ({self.fitting_rate(frame_seconds)})",
            )
        nearest = np.floor(frame_seconds[frames] * self.fps + 0.5).astype(np.int64)
        return np.clip(nearest, 0, self.num_rows - 1)

    def fitting_rate(self, frame_seconds: np.ndarray) -> str:
        """Words for the rate at which the rows would be as long as the video."""
        if self.num_rows == len(frame_seconds):
            return "there is a row for each frame: state none"
        seconds = frame_seconds[-1] * len(frame_seconds) / max(1, len(frame_seconds) - 1)
        return f"{self.num_rows / max(seconds, 1e-6):.4g} a second would fit"

    def _miscounted(self, num_frames: int) -> DataError:
        fix = "make one for each frame of the video as it is decoded"
        if self.kind == "features":
            rate_flag = "--music_feature_fps or " if self.type_name == "music" else ""
            fix = f'{fix}, or state their rate with {rate_flag}a {META_NAME} {{"fps": ...}} beside them'
        return DataError(self.path, f"{self.num_rows} rows of {self.type_name} for {num_frames} frames", fix)


def find_track(
    type_name: str, type_dir: Path, sample_id: str, *, names: Iterable[str] = (), fps: float | None = None
) -> Track:
    """The track of a video. names: its entries in type_dir; fps: the rate, unless a meta.json states another.

    Raises DataError when there is none, or its files are of mixed kinds, misnumbered or have a bad meta.json.
    """
    folder, single = None, None
    for name in names:
        path = type_dir / name
        if path.is_dir():
            folder = path
        elif path.suffix.lower() == ".npy":
            single = path
    rates = [_stated_fps(place / META_NAME) for place in (folder, type_dir) if place is not None]
    fps = next((rate for rate in rates if rate is not None), fps)
    files = _data_files(folder) if folder else []
    if single and files:
        raise DataError(single, f"there is also a folder of {type_name} files, {folder.name}", "keep one")
    if single:
        _check_kind(type_name, "features", single)
        return Track(type_name, "features", single, None, len(load_array(single, mapped=True)), fps)
    if not files:
        kind = TYPE_KINDS.get(type_name)
        wanted = "a json, npy or image" if kind is None else f"a {KIND_SUFFIXES[kind][0][1:]}"
        missing = folder or type_dir / sample_id
        problem = f"no {type_name} files in it" if folder else f"no {type_name} for video {sample_id!r}"
        raise DataError(missing, problem, f"put {wanted} file for each frame there")
    kind = SUFFIX_KINDS[files[0].suffix.lower()]
    _check_kind(type_name, kind, folder)
    return Track(type_name, kind, folder, _numbered(files), len(files), fps)


def open_track(type_name: str, path: str | Path, *, fps: float | None = None) -> Track:
    """The track in a folder of files (or one .npy file) given by path."""
    path = Path(path)
    if not path.exists():
        raise DataError(path, f"no such {type_name} folder or file", "check the path")
    return find_track(type_name, path.parent, path.stem, names=[path.name], fps=fps)


def _data_files(folder: Path) -> list[Path]:
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [e for e in entries if e.suffix.lower() in SUFFIX_KINDS and e.name != META_NAME]
    kinds = {SUFFIX_KINDS[file.suffix.lower()]: file for file in files}
    if len(kinds) > 1:
        names = " and ".join(file.name for file in kinds.values())
        raise DataError(folder, f"files of different kinds ({names})", "keep one kind a folder")
    return files


def _check_kind(type_name: str, kind: str, path: Path) -> None:
    wanted = TYPE_KINDS.get(type_name, kind)
    if kind != wanted:
        suffixes, found = KIND_SUFFIXES[wanted][0][1:], KIND_SUFFIXES[kind][0][1:]
        raise DataError(path, f"{type_name} must be {suffixes} files, found {found}", "convert them")


def _numbered(files: list[Path]) -> tuple[Path, ...]:
    """The files in the order of the last number in their names, which must be 0, 1, 2, ..."""
    by_number: dict[int, Path] = {}
    for file in sorted(files):
        digits = re.findall(r"\d+", file.stem)
        if not digits:
            raise DataError(file, "no frame number in its name", "name it like frame_000" + file.suffix)
        number = int(digits[-1])
        if number in by_number:
            raise DataError(file, f"frame {number} twice, also {by_number[number].name}", "remove one")
        by_number[number] = file
    numbers = sorted(by_number)
    missing = next((index for index, number in enumerate(numbers) if index != number), None)
    if missing == 0:
        file = by_number[numbers[0]]
        problem = f"frame 0 is missing, the first is {numbers[0]}"
        raise DataError(file, problem, "number frames from 0 without gaps")
    if missing is not None:
        before = by_number[missing - 1]
        others = numbers[-1] + 1 - len(numbers) - 1
        more = f", and {others} more" if others else ""
        problem = f"frame {missing} is missing (after {before.name}){more}"
        raise DataError(before.parent, problem, "add the file: every frame of the video needs one")
    return tuple(by_number[number] for number in numbers)


def _stated_fps(path: Path) -> float | None:
    if not path.is_file():
        return None
    content = load_json(path)
    fps = content.get("fps") if isinstance(content, dict) else None
    if isinstance(content, dict) and "flippable" in content and "fps" not in content:
        return None  # it is there for --random_flip alone
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < 1e6:
        raise DataError(path, f"fps must be a positive number, got {fps!r}", 'write {"fps": 30}')
    return float(fps)


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file, of any real number type; never pickled objects. Raises DataError."""
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise DataError(path, f"cannot be read ({error})", "restore the file") from error
    except Exception as error:  # a damaged header is parsed as Python, and fails as whatever it then is
        pickled = "pickle" in str(error).lower() or "Python objects" in str(error)
        problem = "holds pickled objects or no array" if pickled else f"is not a whole .npy file ({error})"
        raise DataError(path, problem, "save a plain number array with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        found = getattr(array, "dtype", "an npz archive")
        raise DataError(path, f"numbers expected, found {found}", "save a float32 array with numpy.save")
    if mapped and (array.ndim < 1 or len(array) == 0):
        raise DataError(path, f"no rows, its shape is {array.shape}", "save an array [N, D]")
    return array


# ---- rows ----


def row_reader(track: Track, num_channels: int) -> Callable[[int], Any]:
    """A function from a row's number to the row, which raises DataError where that is faulty.

    A row is float32: features [D] or [D, H, W]; maps [C, H, W] in 0..1. Of key points it is read_key_points'
    pair. A file of all rows is opened once, here.
    """
    if track.kind == "key_points":
        return lambda row: read_key_points(track.file(row), num_channels)
    if track.kind == "maps":
        return lambda row: _read_map(track.file(row), num_channels)
    if track.files is not None:
        return lambda row: _checked_features(
            track, load_array(track.files[row]), num_channels, track.files[row]
        )
    stored = load_array(track.path, mapped=True)
    return lambda row: _checked_features(track, stored[row], num_channels, track.path, f"row {row}: ")


def _checked_features(
    track: Track, array: np.ndarray, num_channels: int, path: Path, where: str = ""
) -> np.ndarray:
    values = np.array(array, np.float32)
    if values.ndim == 0:
        values = values[None]
    if values.ndim not in (1, 3) or len(values) != num_channels:
        problem = f"{where}shape {tuple(values.shape)}, expected ({num_channels},) or ({num_channels}, H, W)"
        number = len(values) if values.ndim in (1, 3) else num_channels
        fix = f"set {track.type_name}'s --guidance_input_channels to {number}, or extract them again"
        raise DataError(path, problem, fix)
    if not np.isfinite(values).all():
        raise DataError(path, f"{where}NaN or infinite values", "extract the features again")
    return values


def _read_map(path: Path, num_channels: int) -> np.ndarray:
    """An image as [C, H, W] in 0..1 of its number type's range; grey and colour are converted as C asks."""
    image = cv2.imdecode(np.frombuffer(path.read_bytes() or b"\0", np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError(path, "is not a readable image", "replace the file")
    conversions = {
        (1, 1): None, (3, 3): cv2.COLOR_BGR2RGB, (4, 4): cv2.COLOR_BGRA2RGBA,
        (1, 3): cv2.COLOR_GRAY2RGB, (4, 3): cv2.COLOR_BGRA2RGB, (3, 1): cv2.COLOR_BGR2GRAY,
        (4, 1): cv2.COLOR_BGRA2GRAY,
    }  # fmt: skip
    key = (1 if image.ndim == 2 else image.shape[2], num_channels)
    if key not in conversions:
        fix = "images have 1, 3 or 4 channels: set --guidance_input_channels to one of them"
        raise DataError(path, f"an image of {key[0]} channels cannot give {num_channels}", fix)
    if conversions[key] is not None:
        image = cv2.cvtColor(image, conversions[key])
    if image.dtype.kind == "u":
        image = image.astype(np.float32) / np.iinfo(image.dtype).max
    if not np.isfinite(image).all():
        raise DataError(path, "NaN or infinite values", "write the map again")
    return np.moveaxis(image.reshape(*image.shape[:2], num_channels), -1, 0).astype(np.float32)


# ---- maps ----


def is_map(track: Track, row_shape: Iterable[int]) -> bool:
    """Whether rows are pictures of the frame, to be cropped with it. 3-D music is not."""
    spatial_features = track.kind == "features" and len(tuple(row_shape)) == 3
    return track.kind == "maps" or (spatial_features and track.type_name != "music")


def check_map_size(track: Track, map_size: tuple[int, int], frame_size: tuple[int, int]) -> None:
    """Raises DataError unless maps of this (height, width) have the frame's aspect ratio."""
    expected = map_size[0] * frame_size[1] / frame_size[0]
    if abs(map_size[1] - expected) > max(1.0, 0.01 * expected):
        problem = f"maps of {map_size[1]}x{map_size[0]} for a video of {frame_size[1]}x{frame_size[0]}"
        fix = "a map covers the whole frame: make it of the same aspect ratio"
        raise DataError(track.path, problem, fix)


# ---- whole tracks, for sampling ----


def read_pose_folder(
    path: str | Path, num_keypoints: int, *, frame_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Key points float32 [N, K, 3], x and y in 0..1 of the frame.

    frame_size: (height, width) of the poses' own video, needed where they are in pixels.
    """
    track = open_track("pose", path)
    points, units = read_all_key_points(track.path, track.files, num_keypoints)
    if units == "pixel" and frame_size is None:
        fix = "give the size of the video they were made from"
        raise DataError(path, "its key points are in pixels, of a frame of unknown size", fix)
    return normalize_key_points(points, units, frame_size or (1, 1))


def read_music(path: str | Path, num_features: int) -> np.ndarray:
    """Music features float32 [N, D] or [N, D, H, W] of a folder of .npy files or one file."""
    track = open_track("music", path)
    return read_features(track, range(track.num_rows), num_features)


def read_features(track: Track, rows: Iterable[int], num_features: int) -> np.ndarray:
    """Rows of a track float32 [N, ...]. Raises DataError when their shapes differ."""
    read = row_reader(track, num_features)
    values = [read(int(row)) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value.shape != values[0].shape:
            problem = f"shape {value.shape}, other frames have {values[0].shape}"
            raise DataError(track.file(int(row)), problem, "extract the features again")
    return np.stack(values)
