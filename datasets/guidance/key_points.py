"""Key points: one JSON file per frame, ours or OpenPose's own, or one .npy file [N, K, 3] per video.

Key points are [K, 3]: x, y, confidence; confidence 0 means absent. 134 points are 18 body, 6 feet, 68 face
and 2 x 21 hands, in OpenPose's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from datasets.transforms import ClipTransform, Size
from system.errors import DataError

from .drawing import draw_pose
from .files import load_json
from .key_point_check import SAME_UNITS, check_key_points, decide_units, normalize_key_points
from .kind import GuidanceKind, opened, register_guidance_kind
from .openpose import OPENPOSE_COUNTS
from .pose_files import check_number, check_units, check_values, read_key_points
from .track import META_NAME, Track

SIZE_KEYS = (("height", "width"), ("canvas_height", "canvas_width"))  # of files that tell their frame's size

Row = tuple[np.ndarray, str | None]  # points float32 [K, 3] in the file's units, which it may state


@register_guidance_kind("pose")
class KeyPoints(GuidanceKind):
    """Rows of points and stated units; values float32 [n, K, 3] in 0..1 of the frame."""

    name = "key_points"
    suffixes, whole_suffixes = (".json",), (".npy",)
    in_frame = on_person = True

    # ---- read ----

    def reader(self, track: Track, num_channels: int) -> Callable[[int], Row]:
        """Return a function from a row's number to the row; what a file does not state, a meta.json may."""
        units = track.meta.get("coordinates")
        check_units(track.path.with_name(META_NAME), units)
        if track.files is not None:

            def read(row: int) -> Row:
                points, stated = read_key_points(track.files[row], num_channels)
                return points, stated or units

            return read
        rows = opened(track.path, self.load_rows)
        if rows.ndim != 3 or rows.shape[2] != 3:
            problem = f"shape {rows.shape}, expected (N, {num_channels}, 3)"
            raise DataError(track.path, problem, "save one [x, y, confidence] per point of each frame")
        check_number(track.path, rows.shape[1], num_channels)
        return lambda row: (self.check_row(track, row, rows[row], num_channels), units)

    def check_row(self, track: Track, row: int, values: np.ndarray, num_channels: int) -> np.ndarray:
        points = np.array(values, np.float32)
        check_values(track.file(row), points, track.where(row))
        return points

    def array_of(self, row: Row) -> np.ndarray:
        return row[0]

    def units(self, track: Track, read: Callable[[Iterable[int]], list[Row]]) -> str:
        """Return "normalized" or "pixel": as the first row states it, else by the whole video."""
        rows = read([0])
        if rows[0][1] is None and track.files is None:  # at once: row by row takes five times as long
            points = np.array(opened(track.path, self.load_rows), np.float32)
            check_values(track.path, points)
            return decide_units(track.path, points, set())
        if rows[0][1] is None:
            rows = read(range(track.num_rows))
        return decide_units(track.path, np.stack([points for points, _ in rows]), {one for _, one in rows})

    def values(
        self, track: Track, numbers: Iterable[int], rows: Sequence, units: str | None, frame_size: Size | None
    ) -> np.ndarray:
        for number, (_, stated) in zip(numbers, rows, strict=True):
            if stated not in (None, units):
                problem = f"coordinates is {stated!r}, but {units!r} in its first file"
                raise DataError(track.file(int(number)), problem, SAME_UNITS)
        if units == "pixel" and frame_size is None:
            fix = "give the size of the video they were made from (--pose_size WIDTH HEIGHT)"
            raise DataError(track.path, "its key points are in pixels, of a frame of unknown size", fix)
        points = np.stack([points for points, _ in rows])
        return normalize_key_points(points, units, frame_size or (1, 1))

    # ---- fit to the frame, flip ----

    def stated_size(self, track: Track, row_shape: Sequence[int]) -> Size | None:
        content = track.meta if track.files is None else load_json(track.files[0])
        for keys in SIZE_KEYS:
            sides = tuple(content.get(key) for key in keys) if isinstance(content, dict) else ()
            if sides and all(isinstance(side, int | float) and side > 0 for side in sides):
                return sides
        return None

    def fit(self, track: Track, values: np.ndarray, transform: ClipTransform, frame_size: Size) -> Tensor:
        return transform.key_points(values)

    def check_flippable(self, track: Track, row_shape: Sequence[int]) -> None:
        if row_shape[0] not in OPENPOSE_COUNTS:
            problem = f"{row_shape[0]} key points of unknown order: their left and right cannot be exchanged"
            raise DataError(track.path, problem, "leave out --random_flip")

    # ---- check, draw ----

    def kept(self, row: Row) -> Row:
        return row

    def check(self, track: Track, kept: list[Row], add: Callable, frame_size: Size | None) -> dict:
        return check_key_points(track, kept, add, frame_size)

    def draw(self, condition: np.ndarray, frame: int, size: Size, background=None) -> np.ndarray:
        return draw_pose(condition[frame], size, background)
