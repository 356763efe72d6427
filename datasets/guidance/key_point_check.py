"""A whole video's key points: their units, whether anybody is there, whether in the frame."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets.transforms import Size
from system.errors import DataError

from .track import META_NAME, Track

MAX_NORMALIZED = 1.5  # a median coordinate above this is in pixels; 0..1 tracks may lie a little outside
SAME_UNITS = "write all of a video's files in the same units, and state those in each"
OUTSIDE_TOLERANCE = 0.05  # of the frame: trackers place a hand a little outside
SIGNED_SHARE = 0.2  # of coordinates that are negative: from the middle of the frame, half are
MIN_POINTS_FOR_UNITS = 3  # of a frame, to tell its units by itself: one point may lie in a corner


def decide_units(path: Path, points: np.ndarray, stated: set[str | None]) -> str:
    """Return the units of a whole video's points [N, K, 3]: "normalized" or "pixel".

    path: their folder; stated: what its files say, if they do. Else by the median of the present points, so
    that a few strays do not decide; where nobody was ever detected, normalized.
    """
    stated = stated - {None}
    if len(stated) > 1:
        raise DataError(path, "its files disagree about coordinates", SAME_UNITS)
    if stated:
        return stated.pop()
    present = points[points[..., 2] > 0][:, :2]
    return "pixel" if len(present) and np.median(np.abs(present).max(-1)) > MAX_NORMALIZED else "normalized"


def normalize_key_points(points: np.ndarray, units: str, frame_size: Size) -> np.ndarray:
    """Return points [..., K, 3] in 0..1 of the frame of frame_size (height, width)."""
    if units == "normalized":
        return points
    return points / np.array([frame_size[1], frame_size[0], 1], np.float32)


def check_key_points(track: Track, rows: list[tuple], add: Callable, frame_size: Size | None) -> dict:
    """Return facts of a track: the units taken, and how many frames are without a point.

    Raises DataError when the files state different units.
    """
    points = np.stack([row for row, _ in rows])  # [N, K, 3]
    stated = {units for _, units in rows} - {None}
    units = decide_units(track.path, points, stated)
    _check_presence(track, points, add)
    facts = {
        "coordinates": units,
        "coordinates_stated": bool(stated),
        "frames_without_points": int((points[..., 2] <= 0).all(1).sum()),
    }
    if _check_units(track, points, units, bool(stated), add) and (frame_size or units == "normalized"):
        _check_outside(track, points, units, frame_size or (1, 1), add)
    return facts


def _check_presence(track: Track, points: np.ndarray, add: Callable) -> None:
    empty = (points[..., 2] <= 0).all(1)
    if empty.all():
        add(track.path, "no key point in any frame", "detect the poses again, or remove the video")
    elif empty.mean() > 0.5:
        problem = f"no key point in {empty.sum()} of {len(points)} frames"
        fix = "look whether the person is seen; detect the poses again, or cut the video"
        add(track.path, problem, fix, "warning")


def _check_units(track: Track, points: np.ndarray, units: str, stated: bool, add: Callable) -> bool:
    """Return whether every frame that shows its units by itself shows the units taken; else add the fault."""
    present = points[..., 2] > 0
    telling = present.sum(1) >= min(MIN_POINTS_FOR_UNITS, points.shape[1])
    largest = np.where(present, np.abs(points[..., :2]).max(-1), np.nan)
    middle = np.full(len(points), np.nan)
    middle[telling] = np.nanmedian(largest[telling], axis=1)
    looks_pixel = middle > MAX_NORMALIZED  # False for NaN
    wrong = looks_pixel if units == "normalized" else telling & ~looks_pixel
    if not wrong.any():
        return True
    row = int(np.flatnonzero(wrong)[0])
    looks = "pixels" if units == "normalized" else "0..1"
    seen = f"coordinates about {middle[row]:.4g} look like {looks}"
    if stated:
        problem = f'states "{units}", but {seen}, in {wrong.sum()} of {telling.sum()} frames'
    else:
        problem = f"{seen}, the video's other frames are {'0..1' if units == 'normalized' else 'pixels'}"
        problem += f"; {wrong.sum()} frames in all" if wrong.sum() > 1 else ""
    problem = track.where(row) + problem
    if track.files is None:
        fix = f"write all rows in the same units, and state those in a {META_NAME} beside the file"
    else:
        fix = SAME_UNITS
    add(track.file(row), problem, fix)
    return False


def _check_outside(track: Track, points: np.ndarray, units: str, frame_size: Size, add: Callable) -> None:
    present = points[..., 2] > 0
    place = normalize_key_points(points, units, frame_size)[..., :2]
    outside = ((place < -OUTSIDE_TOLERANCE) | (place > 1 + OUTSIDE_TOLERANCE)).any(-1) & present
    if not outside.any():
        return
    row, point = map(int, np.argwhere(outside)[0])
    x, y = place[row, point]
    problem = f"{track.where(row)}key point {point} at ({x:.2f}, {y:.2f}) of the frame is outside it"
    problem += f"; so are {outside.sum()} points in {outside.any(1).sum()} frames"
    severity = "error" if outside.sum() > present.sum() / 2 else "warning"
    add(track.file(row), problem, _outside_fix(place[present], units, frame_size), severity)


def _outside_fix(place: np.ndarray, units: str, frame_size: Size) -> str:
    """Return what to do about points [n, 2] in terms of the frame, some of which lie outside it."""
    absent = "set the confidence of points outside the frame to 0"
    least, most = place.min(0), place.max(0)
    if units == "normalized":
        is_signed = (place < 0).mean() > SIGNED_SHARE and least.min() >= -1 - OUTSIDE_TOLERANCE
        return (
            f"if they are in -1..1, write (x + 1) / 2 and (y + 1) / 2, else {absent}" if is_signed else absent
        )
    height, width = frame_size
    reach = f"they reach {most[0] * width:.0f}x{most[1] * height:.0f} pixels, the video is {width}x{height}"
    return f"{reach}: if they are of a video of another size, scale them to this one's, else {absent}"
