"""Left and right: what a horizontal flip does to guidance, and which guidance it would make wrong.

A flipped dancer's right hand is a left hand: key points exchange their sides. Values that tell left from
right (normals, coloured limbs, joint angles) would lie when flipped, so such types are refused.
"""

from __future__ import annotations

import json
from pathlib import Path

from system.errors import DataError

from .key_points import OPENPOSE_COUNTS
from .tracks import META_NAME, Track, is_map

FLIPPABLE_TYPES = ("depth", "mask", "music")  # their values are the same from both sides

# For each of the 134 points, the one on the other side of the body.
_BODY = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)
_FEET = (21, 22, 23, 18, 19, 20)
_FACE = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),  # jaw, brows, nose
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,  # eyes
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),  # lips, outer and inner
)  # fmt: skip
_HANDS = (*range(113, 134), *range(92, 113))
_FLIPPED = (*_BODY, *_FEET, *(24 + point for point in _FACE), *_HANDS)


def flip_order(num_points: int) -> list[int]:
    """For each point of OpenPose's order, the point that takes its place in a flipped picture.

    Raises ValueError for another number of points: of an unknown order nobody can tell left from right.
    """
    if num_points not in OPENPOSE_COUNTS:
        raise ValueError(f"{num_points} key points are not of OpenPose's order {OPENPOSE_COUNTS}")
    return list(_FLIPPED[:num_points])


def check_flippable(track: Track, row_shape: tuple[int, ...]) -> None:
    """Raises DataError where flipped clips would have wrong guidance of this type."""
    fix = "leave out --random_flip"
    if track.kind == "key_points" and row_shape[0] not in OPENPOSE_COUNTS:
        problem = f"{row_shape[0]} key points of unknown order: their left and right cannot be exchanged"
        raise DataError(track.path, problem, fix)
    is_known = track.kind == "key_points" or track.type_name in FLIPPABLE_TYPES
    if not is_known and not _states_flippable(track):
        what = "maps" if is_map(track, row_shape) else "features"
        problem = f"{what} of {track.type_name} may tell left from right in their values"
        told = f'if they do not, say so with {{"flippable": true}} in {track.path.parent / META_NAME}'
        raise DataError(track.path, problem, f"{fix}; {told}")


def _states_flippable(track: Track) -> bool:
    path: Path = track.path.parent / META_NAME
    return path.is_file() and json.loads(path.read_bytes()).get("flippable") is True
