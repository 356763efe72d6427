"""A kind of track: how its files are read, checked, fitted to the frames, flipped and drawn.

`GuidanceKind` itself does it for numbers of any shape, so that a new file format is one small class in one
file, registered with `@register_guidance_kind`; also in a file of the user's (`--guidance_modules`).
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets import packed_files
from datasets.transforms import ClipTransform, Size
from system.errors import ConfigError, DataError, RunError
from system.user_code import import_user_modules

from .array_shape import expected_rows, way_to
from .drawing import draw_features
from .files import load_array
from .track import META_NAME, Track

FLIPPABLE_TYPES = ("depth", "mask", "music")  # their values are the same from both sides

KINDS: dict[str, GuidanceKind] = {}  # by name, the first registered first
KINDS_OF_TYPES: dict[str, GuidanceKind] = {}  # other types: whatever their files are
EXTRACT_AGAIN = "extract them again"
ROW_SHAPES = {1: "({0},)", 2: "({0}, W)", 3: "({0}, H, W)"}


class GuidanceKind:
    """Rows of numbers, float32 [D, ...], D the type's guidance_input_channels; other kinds override.

    A row is what `reader` gives and the other methods take, one per frame. Faults are DataErrors.
    """

    name = "numbers"  # in reports; underscores are blanks
    suffixes: tuple[str, ...] = ()  # of files in a folder named after the video, one per row
    whole_suffixes: tuple[str, ...] = ()  # of a file named after the video, with all rows
    ndims = (1, 2, 3)  # of a row
    counted = "values"  # what guidance_input_channels counts
    in_frame = False  # rows lie in the frame and move with it; those that do not may have their own rate
    on_person = False  # values are points [n, K, 3] of the person: a crop keeps them, reports draw them on it
    source_digest = ""  # of a user's class: with other code a check and a cache must not count as the same
    constant_fault = ("values", "extract the features again", "error")  # the same in every frame

    # ---- read ----

    def load_row(self, path: Path, num_channels: int) -> np.ndarray:
        """Return the row of a file."""
        return load_array(path)

    def load_rows(self, path: Path) -> Sequence[np.ndarray]:
        """Return all rows of a file, at best mapped and not read."""
        return load_array(path, mapped=True)

    def is_row_shape(self, shape: Sequence[int], num_channels: int) -> bool:
        return len(shape) in self.ndims and shape[0] == num_channels

    def row_shapes(self, num_channels: int) -> list[str]:
        """Return words for the shapes that a row may have."""
        return [ROW_SHAPES[ndim].format(num_channels) for ndim in self.ndims]

    def check_layout(self, track: Track, num_channels: int, num_frames: int | None = None) -> None:
        """Raise DataError for a file of all rows whose axes are in another order, or one too many.

        num_frames: of the video, which each have a row; None where a rate is stated or there is no video.
        """
        shape = track.shape
        if shape is None or self.is_row_shape(shape[1:], num_channels):
            return
        way = way_to(shape, lambda one: self.is_row_shape(one[1:], num_channels), num_frames)
        fix = way and way[0]
        if way is None and num_frames is not None and shape[0] != num_frames:  # the number may be wrong, too
            way = way_to(
                shape,
                lambda one: len(one) > 1 and one[0] == num_frames and self.is_row_shape(one[1:], one[1]),
            )
            fix = way and f"{way[0]}, then {channels_fix(track.type_name, way[1][1], EXTRACT_AGAIN)}"
        if fix:
            expected = f", expected {expected_rows(self.row_shapes(num_channels))}"
            if num_frames is not None:
                expected = f" for {num_frames} frames of {num_channels} {self.counted}"
            raise DataError(track.path, f"shape {shape}{expected}", fix)

    def reader(self, track: Track, num_channels: int) -> Callable[[int], Any]:
        """Return a function from a row's number to the row. A file of all rows is opened once, here."""
        self.check_layout(track, num_channels)
        if track.files is None:
            rows = opened(track.path, self.load_rows)
            return lambda row: self.check_row(track, row, rows[row], num_channels)
        files, load = track.files, self.load_row
        return lambda row: self.check_row(track, row, opened(files[row], load, num_channels), num_channels)

    def check_row(self, track: Track, row: int, values: np.ndarray, num_channels: int) -> np.ndarray:
        """Return the row as float32. Raises DataError for a wrong shape, NaN and infinite values."""
        values = np.array(values, np.float32)
        if values.ndim == 0:
            values = values[None]
        if not self.is_row_shape(values.shape, num_channels):
            expected = " or ".join(self.row_shapes(num_channels))
            problem = f"{track.where(row)}shape {values.shape}, expected {expected}"
            raise DataError(track.file(row), problem, self._shape_fix(track, values.shape, num_channels))
        if not np.isfinite(values).all():
            fix = "extract the features again"
            raise DataError(track.file(row), f"{track.where(row)}NaN or infinite values", fix)
        return values

    def _shape_fix(self, track: Track, shape: tuple[int, ...], num_channels: int) -> str:
        way = way_to(shape, lambda one: self.is_row_shape(one, num_channels))
        if way is not None:
            return way[0]
        if len(shape) in self.ndims and num_channels not in shape:
            return channels_fix(track.type_name, shape[0], EXTRACT_AGAIN)
        return "extract them again, one row per frame"

    def array_of(self, row: Any) -> np.ndarray:
        """Return the row's numbers as they are stored."""
        return row

    def units(self, track: Track, read: Callable[[Iterable[int]], list]) -> str | None:
        """Return what all rows of a video decide together; None: nothing. read(numbers): the rows."""
        return None

    def values(
        self, track: Track, numbers: Iterable[int], rows: Sequence, units: str | None, frame_size: Size | None
    ) -> np.ndarray:
        """Return rows of these numbers as one array [n, ...] in terms of the frame.

        frame_size: (height, width) of the video for rows that have units; None where it is not known.
        """
        for number, row in zip(numbers, rows, strict=True):
            if row.shape != rows[0].shape:
                problem = f"shape {row.shape}, other frames have {rows[0].shape}"
                raise DataError(track.file(int(number)), problem, "make all of them alike")
        return np.stack(rows)

    # ---- fit to the frame, flip ----

    def is_map(self, track: Track, row_shape: Sequence[int]) -> bool:
        """Return whether rows are images of the frame, to be cropped with it."""
        return False

    def stated_size(self, track: Track, row_shape: Sequence[int]) -> Size | None:
        """Return the (height, width) of the frame that rows lie in, where the files tell it."""
        return tuple(row_shape[-2:]) if row_shape and self.is_map(track, row_shape) else None

    def fit(self, track: Track, values: np.ndarray, transform: ClipTransform, frame_size: Size) -> Tensor:
        """Return the condition [F, ...] of a clip. transform.flipped: left and right are exchanged."""
        if not self.is_map(track, values.shape[1:]):
            return torch.from_numpy(values)
        check_map_size(track, values.shape[-2:], frame_size)
        return transform.maps(values)

    def check_flippable(self, track: Track, row_shape: Sequence[int]) -> None:
        """Raise DataError where flipped clips would have wrong guidance.

        Values that tell left from right (normals, coloured limbs, joint angles) would lie when flipped.
        """
        if track.type_name not in FLIPPABLE_TYPES and track.meta.get("flippable") is not True:
            what = "maps" if self.is_map(track, row_shape) else self.name.replace("_", " ")
            problem = f"{what} of {track.type_name} may tell left from right in their values"
            told = f'if they do not, say so with {{"flippable": true}} in {track.path.parent / META_NAME}'
            raise DataError(track.path, problem, f"leave out --random_flip; {told}")

    # ---- check ----

    def kept(self, row: Any) -> Any:
        """Return what `check` needs of a row: (shape, least, greatest, digest)."""
        return row.shape, float(row.min()), float(row.max()), hashlib.blake2b(row.tobytes()).digest()

    def check(self, track: Track, kept: list, add: Callable, frame_size: Size | None) -> dict:
        """Return facts of a whole track. add(path, problem, fix, severity) takes a fault.

        frame_size: of the video, None where it cannot be read.
        """
        shapes = Counter(shape for shape, *_ in kept)
        usual = shapes.most_common(1)[0][0]
        if len(shapes) > 1:
            row = next(number for number, (shape, *_) in enumerate(kept) if shape != usual)
            problem = f"shape {kept[row][0]}, other frames have {usual}"
            add(track.file(row), problem, "make all of them alike")
        if len(kept) > 1 and len({digest for *_, digest in kept}) == 1:
            zero = " zero" if all(low == high == 0 for _, low, high, _ in kept) else ""
            what, *rest = self.constant_fault
            add(track.path, f"the same{zero} {what} in every frame", *rest)
        if frame_size is not None and self.is_map(track, usual):
            try:
                check_map_size(track, usual[1:], frame_size)
            except DataError as error:
                add(track.path, error.problem, error.fix)
        return {"shape": list(usual)}

    def check_motion(
        self, track: Track, kept: list, add: Callable, frame_size: Size, seconds: np.ndarray
    ) -> dict:
        """Return facts of how rows without a fault move. seconds: when each row is, [N]."""
        return {}

    # ---- draw ----

    @property
    def has_image(self) -> bool:
        """Whether a row alone is drawn as an image; else reports show a curve over time."""
        return type(self).draw is not GuidanceKind.draw

    def draw(self, condition: np.ndarray, frame: int, size: Size, background=None) -> np.ndarray:
        """Return a frame of a condition [F, ...] as an image, uint8 [H, W, 3], over a background."""
        return draw_features(condition, frame, size)

    def __reduce__(self) -> tuple:
        """Let a process that did not import the user's module have its kind too."""
        module = type(self).__module__
        return _restored, (self.name, module, getattr(sys.modules.get(module), "__file__", None))


def opened(path: Path, load: Callable, *arguments) -> Any:
    """Return load(path, ...). Raises DataError for whatever is wrong with the file."""
    try:
        if packed_files.is_packed(path) and _is_users_own(load):
            with packed_files.unpacked(path) as real:  # a user's kind may open it in any way
                return load(real, *arguments)
        return load(path, *arguments)
    except (DataError, RunError):
        raise
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror or error})", "restore the file") from error
    except Exception as error:
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise DataError(path, problem, "restore or replace the file") from error


def _is_users_own(load: Callable) -> bool:
    return bool(getattr(getattr(load, "__self__", None), "source_digest", ""))


def channels_fix(type_name: str, number: int, otherwise: str) -> str:
    """Return what to do about another number of channels than asked for: one file does not tell which."""
    flag = f"{type_name}'s --guidance_input_channels"
    return f"if all {type_name} files have {number}, set {flag} to {number}, else {otherwise}"


def check_map_size(track: Track, map_size: Size, frame_size: Size) -> None:
    """Raise DataError unless maps of this (height, width) have the frame's aspect ratio."""
    expected = map_size[0] * frame_size[1] / frame_size[0]
    if abs(map_size[1] - expected) > max(1.0, 0.01 * expected):
        problem = f"maps of {map_size[1]}x{map_size[0]} for a video of {frame_size[1]}x{frame_size[0]}"
        fix = "a map covers the whole frame as it is shown: make it of the same aspect ratio"
        raise DataError(track.path, problem, fix)


# ---- which kind ----


def register_guidance_kind(*guidance_types: str) -> Callable[[type[GuidanceKind]], type[GuidanceKind]]:
    """Return a class decorator: tracks of these types, and files of its endings, are of this kind.

    A type that no kind is bound to has the kind that was registered first for the ending of its files.
    """

    def register(kind_class: type[GuidanceKind]) -> type[GuidanceKind]:
        kind = kind_class()
        if not kind_class.__module__.startswith("datasets."):
            kind.source_digest = _source_digest(kind_class)
        KINDS[kind.name] = kind
        KINDS_OF_TYPES.update(dict.fromkeys(guidance_types, kind))
        return kind_class

    return register


def _source_digest(kind_class: type[GuidanceKind]) -> str:
    try:
        source = inspect.getsource(kind_class)
    except (OSError, TypeError):  # typed into an interpreter, say
        return ""
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()


def kind_of_file(guidance_type: str, path: Path, *, is_whole: bool) -> GuidanceKind | None:
    """Return the kind of a type's file, of one row or of all (whole); None: its ending is not known."""
    for kind in (KINDS_OF_TYPES.get(guidance_type), *KINDS.values()):
        if kind and path.suffix.lower() in (kind.whole_suffixes if is_whole else kind.suffixes):
            return kind
    return None


def _restored(name: str, module: str, file: str | None) -> GuidanceKind:
    if name not in KINDS:
        try:
            import_user_modules([module])
        except ConfigError:  # it was given by the path of its file
            import_user_modules([file])
    return KINDS[name]
