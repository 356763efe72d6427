"""Key points of a video: our JSON and OpenPose's own, and whether they are in pixels.

Key points are [K, 3]: x, y, confidence; confidence 0 means absent. 134 points are 18 body, 6 feet, 68 face
and 2 x 21 hands, in OpenPose's order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from system.errors import DataError

MAX_NORMALIZED = 1.5  # a median coordinate above this is in pixels; 0..1 tracks may lie a little outside

# OpenPose's BODY_25 in the order of 18 body points and 6 feet: its point 8, between the hips, is left out.
_BODY_25 = (*range(8), *range(9, 19), *range(19, 25))
OPENPOSE_COUNTS = (18, 24, 92, 134)  # body; with feet; with face; with hands


def load_json(path: Path):
    """Content of a JSON file. Raises DataError."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "restore the file") from error
    except ValueError as error:
        problem = "is empty" if path.stat().st_size == 0 else f"is not valid JSON ({error})"
        raise DataError(path, problem, "write it again") from error


def read_key_points(path: Path, num_points: int) -> tuple[np.ndarray, str | None]:
    """(points float32 [K, 3] in the file's units, "normalized" | "pixel" | None where it does not say)."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise DataError(path, "a JSON object expected", 'write {"keypoints": [[x, y, confidence], ...]}')
    units = content.get("coordinates")
    if units not in (None, "normalized", "pixel"):
        raise DataError(path, f"coordinates is {units!r}", 'write "normalized" or "pixel"')
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
    if points.shape != (num_points, 3):
        raise DataError(
            path,
            f"{len(points)} key points, expected {num_points}",
            f"set --guidance_input_channels to {len(points)}, or detect the poses again",
        )
    if not np.isfinite(points).all() or (points[:, 2] < 0).any():
        problem = "a NaN, infinite or (confidence) negative value"
        raise DataError(path, problem, "write absent points as [0, 0, 0]")
    return points, units


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
    """OpenPose's first person in our order, float32 [K, 3], K of 18, 24, 92 or 134; nobody: all absent."""
    if num_points not in OPENPOSE_COUNTS:
        fix = f"set --guidance_input_channels to one of {OPENPOSE_COUNTS}"
        raise DataError(path, f"OpenPose's files give no {num_points} points", fix)
    if not isinstance(people, list) or (people and not isinstance(people[0], dict)):
        raise DataError(path, "people is not a list of persons", "write it again with OpenPose")
    person = people[0] if people else {}
    body = _part(path, person, "pose_keypoints_2d", (18, 25))
    no_feet = np.zeros((6, 3), np.float32)
    body = body[list(_BODY_25)] if len(body) == 25 else np.concatenate([body, no_feet])
    face = _part(path, person, "face_keypoints_2d", (70, 68))[:68]  # the last two are the pupils
    hands = [_part(path, person, f"hand_{side}_keypoints_2d", (21,)) for side in ("left", "right")]
    return np.concatenate([body, face, *hands])[:num_points]


def _part(path: Path, person: dict, key: str, counts: tuple[int, ...]) -> np.ndarray:
    """A part's points [n, 3]; all absent where OpenPose found none (it writes nothing, null or zeros)."""
    values = person.get(key)
    if not values:
        return np.zeros((counts[0], 3), np.float32)
    if len(values) not in [3 * count for count in counts]:
        fix = f"expected {3 * counts[0]}: x, y and confidence of each point"
        raise DataError(path, f"{key} has {len(values)} numbers", fix)
    return _as_points(path, np.reshape(values, (-1, 3)).tolist())


def decide_units(path: Path, points: np.ndarray, stated: set[str | None]) -> str:
    """The units of a whole video's points [N, K, 3]: "normalized" or "pixel".

    path: their folder; stated: what its files say, if they do. Else by the median of the present points, so
    that a few strays do not decide; where nobody was ever detected, normalized.
    """
    stated = stated - {None}
    if len(stated) > 1:
        problem = "its files disagree about coordinates"
        raise DataError(path, problem, "write the same in all of a video's files")
    if stated:
        return stated.pop()
    present = points[points[..., 2] > 0][:, :2]
    return "pixel" if len(present) and np.median(np.abs(present).max(-1)) > MAX_NORMALIZED else "normalized"


def read_all_key_points(path: Path, files: Sequence[Path], num_points: int) -> tuple[np.ndarray, str]:
    """(points float32 [N, K, 3] as stored, their units) of a folder's files."""
    rows = [read_key_points(file, num_points) for file in files]
    points = np.stack([row for row, _ in rows])
    return points, decide_units(path, points, {units for _, units in rows})


def normalize_key_points(points: np.ndarray, units: str, frame_size: tuple[int, int]) -> np.ndarray:
    """Points [..., K, 3] in 0..1 of the frame of frame_size (height, width)."""
    if units == "normalized":
        return points
    return points / np.array([frame_size[1], frame_size[0], 1], np.float32)
