"""Pose files: one JSON file per frame, ours or OpenPose's own, and what makes key points faulty."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from system.errors import DataError

from .files import load_json
from .openpose import BODY_25, OPENPOSE_COUNTS


def read_key_points(path: Path, num_points: int) -> tuple[np.ndarray, str | None]:
    """Return (points float32 [K, 3] in the file's units, "normalized" | "pixel" | None: not stated)."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise DataError(path, "a JSON object expected", 'write {"keypoints": [[x, y, confidence], ...]}')
    units = content.get("coordinates")
    check_units(path, units)
    number, stated = int(re.findall(r"\d+", path.stem)[-1]), content.get("frame_id")
    if "people" in content:
        points = _openpose_points(path, content["people"], num_points)
    elif "keypoints" in content:
        points = _as_points(path, content["keypoints"])
        if stated is not None and stated != number:
            raise DataError(path, f"frame_id is {stated!r} in the file of frame {number}", "make them agree")
    else:
        problem = 'neither "keypoints" nor OpenPose\'s "people" in it'
        raise DataError(path, problem, 'write {"keypoints": [[x, y, confidence], ...]}')
    check_number(path, len(points), num_points)
    check_values(path, points)
    return points, units


def check_units(path: Path, units: object) -> None:
    if units not in (None, "normalized", "pixel"):
        raise DataError(path, f"coordinates is {units!r}", 'write "normalized" or "pixel"')


def check_number(path: Path, number: int, expected: int) -> None:
    if number != expected:
        fix = f"set --guidance_input_channels to {number}, or detect the poses again"
        raise DataError(path, f"{number} key points, expected {expected}", fix)


def check_values(path: Path, points: np.ndarray, where: str = "") -> None:
    if not np.isfinite(points).all() or (points[..., 2] < 0).any():
        problem = f"{where}a NaN, infinite or (confidence) negative value"
        raise DataError(path, problem, "write absent points as [0, 0, 0]")


def _as_points(path: Path, values) -> np.ndarray:
    try:
        points = np.array(values, np.float32)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 3:
        fix = "write one [x, y, confidence] a point"
        raise DataError(path, f"keypoints is not a list of number triples ({_short(values)})", fix)
    return points


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _openpose_points(path: Path, people, num_points: int) -> np.ndarray:
    """Return OpenPose's first person in our order, float32 [K, 3]; all absent where it found nobody."""
    if num_points not in OPENPOSE_COUNTS:
        fix = f"set --guidance_input_channels to one of {OPENPOSE_COUNTS}"
        raise DataError(path, f"OpenPose's files give no {num_points} points", fix)
    if not isinstance(people, list) or (people and not isinstance(people[0], dict)):
        raise DataError(path, "people is not a list of persons", "write it again with OpenPose")
    person = people[0] if people else {}
    body = _part(path, person, "pose_keypoints_2d", (18, 25))
    no_feet = np.zeros((6, 3), np.float32)
    body = body[list(BODY_25)] if len(body) == 25 else np.concatenate([body, no_feet])
    face = _part(path, person, "face_keypoints_2d", (70, 68))[:68]  # the last two are the pupils
    hands = [_part(path, person, f"hand_{side}_keypoints_2d", (21,)) for side in ("left", "right")]
    return np.concatenate([body, face, *hands])[:num_points]


def _part(path: Path, person: dict, key: str, counts: tuple[int, ...]) -> np.ndarray:
    """Return a part's points [n, 3]; all absent where OpenPose found none (nothing, null or zeros)."""
    values = person.get(key)
    if not values:
        return np.zeros((counts[0], 3), np.float32)
    if len(values) not in [3 * count for count in counts]:
        fix = f"expected {3 * counts[0]}: x, y and confidence of each point"
        raise DataError(path, f"{key} has {len(values)} numbers", fix)
    return _as_points(path, np.reshape(values, (-1, 3)).tolist())
