"""Key points: one JSON file per frame, ours or OpenPose's own, or one .npy file [N, K, 3] per video.

Key points are [K, 3]: x, y, confidence; confidence 0 means absent. 134 points are 18 body, 6 feet, 68 face
and 2 x 21 hands, in OpenPose's order.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from datasets.packed_files import is_file
from datasets.transforms import ClipTransform, Size
from system.errors import DataError

from .drawing import draw_pose
from .files import load_json
from .key_point_check import SAME_UNITS, check_key_points, decide_units, normalize_key_points
from .kind import GuidanceKind, channels_fix, opened, register_guidance_kind
from .openpose import BODY_25, OPENPOSE_COUNTS
from .people import BODY, PEOPLE, SIDES, box_around, describe_frames, find_jumps, largest_person
from .track import META_NAME, Track

UNITS = (None, "normalized", "pixel")
SIZE_KEYS = (("height", "width"), ("canvas_height", "canvas_width"))  # of files that tell their frame's size

JUMP_FIXES = {
    PEOPLE: "keep the key points of one person, or cut the video where another is seen",
    SIDES: "exchange left and right in these frames",
    BODY: "set the confidence of the wrong points in these frames to 0",
}
COCO_FIX = (
    "if they are COCO-WholeBody's, write what to_134_points of preparation/pose/dwpose.py makes of each "
    "frame's, x and y in 0..1 of the frame"
)
USUAL_RATE = 30.0  # frames per second, of a track that states none: how long a person may be hidden

Row = tuple[np.ndarray, str | None]  # points float32 [K, 3] in the file's units, which it may state


def _meta_path(track: Track) -> Path:
    """Return the meta.json that states a track's units: its own, or that of its type's folder."""
    own = track.path / META_NAME
    is_own = is_file(own) and "coordinates" in load_json(own)
    return own if is_own else track.path.with_name(META_NAME)


@register_guidance_kind("pose")
class KeyPoints(GuidanceKind):
    """Rows of points and stated units; values float32 [n, K, 3] in 0..1 of the frame."""

    name = "key_points"
    suffixes, whole_suffixes = (".json",), (".npy",)
    in_frame = on_person = True
    counted = "key points"

    # ---- read ----

    def is_row_shape(self, shape: Sequence[int], num_channels: int) -> bool:
        return tuple(shape) == (num_channels, 3)

    def row_shapes(self, num_channels: int) -> list[str]:
        return [f"({num_channels}, 3)"]

    def reader(self, track: Track, num_channels: int) -> Callable[[int], Row]:
        """Return a function from a row's number to the row; what a file does not state, a meta.json may."""
        units = track.meta.get("coordinates")
        if units not in UNITS:  # a reader is made for many a clip: no file is looked for unless it is named
            check_units(_meta_path(track), units)
        if track.files is not None:
            return lambda row: read_key_points(
                track.files[row], num_channels, units, lambda: followed_people(track)[row],
                is_numbered=len(track.files) > 1,
            )  # fmt: skip
        self.check_layout(track, num_channels)
        rows = opened(track.path, self.load_rows)
        if rows.ndim != 3 or rows.shape[2] != 3:
            problem = f"shape {rows.shape}, expected (N, {num_channels}, 3)"
            raise DataError(track.path, problem, "save one [x, y, confidence] per point of each frame")
        check_number(track.path, rows.shape[1], num_channels, track.type_name)
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
        first = {} if track.files is None else load_frame(track.files[0])
        content = track.meta | (first if isinstance(first, dict) else {})
        for keys in SIZE_KEYS:
            sides = tuple(content.get(key) for key in keys)
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
        facts = check_key_points(track, kept, add, frame_size)
        most = track.memo.get("most_people", 0)
        return facts | ({"people": most} if most > 1 else {})

    def check_motion(
        self, track: Track, kept: list[Row], add: Callable, frame_size: Size, seconds: np.ndarray
    ) -> dict:
        points = np.stack([points for points, _ in kept])
        units = decide_units(track.path, points, {stated for _, stated in kept})
        jumps = find_jumps(normalize_key_points(points, units, frame_size), frame_size, seconds)
        for what, frames in jumps.items():
            add(track.path, f"{what} in frames {describe_frames(frames)}", JUMP_FIXES[what], "warning")
        return {"jumps": jumps} if jumps else {}

    def draw(self, condition: np.ndarray, frame: int, size: Size, background=None) -> np.ndarray:
        return draw_pose(condition[frame], size, background)


# ---- JSON files: ours, and OpenPose's own ----


def load_frame(path: Path):
    """Return the content of a pose file: of a list of one frame (ComfyUI's nodes write it), that frame.

    People who are null, as trackers write those who are not seen, are left out.
    """
    content = load_json(path)
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    if isinstance(content, dict) and isinstance(content.get("people"), list):
        content["people"] = [person for person in content["people"] if person is not None]
    return content


def read_key_points(
    path: Path, num_points: int, otherwise: str | None = None,
    person: Callable[[], int | None] = lambda: 0, *, is_numbered: bool = True,
) -> Row:  # fmt: skip
    """Return (points float32 [K, 3] in the file's units, "normalized" | "pixel"; not stated: `otherwise`).

    person: asked of OpenPose's files, which of the people in it is followed; None: he is not among them.
    is_numbered: the frame that the file states must be the one of its name; the only one may have any name.
    """
    content = load_frame(path)
    if isinstance(content, list) and content and all(isinstance(frame, dict) for frame in content):
        fix = "write each frame as a file of its own: frame_000.json, frame_001.json, ..."
        raise DataError(path, f"holds {len(content)} frames", fix)
    if not isinstance(content, dict):
        raise DataError(path, "a JSON object expected", 'write {"keypoints": [[x, y, confidence], ...]}')
    units = content.get("coordinates")
    check_units(path, units)
    number, stated = re.findall(r"\d+", path.stem)[-1:], content.get("frame_id")
    if "people" in content:
        points = _openpose_points(path, content["people"], num_points, person)
    elif "keypoints" in content:
        points = _as_points(path, content["keypoints"])
        if is_numbered and stated is not None and stated != int(number[0]):
            problem = f"frame_id is {stated!r} in the file of frame {int(number[0])}"
            raise DataError(path, problem, "make them agree")
    else:
        problem = 'neither "keypoints" nor OpenPose\'s "people" in it'
        raise DataError(path, problem, 'write {"keypoints": [[x, y, confidence], ...]}')
    check_number(path, len(points), num_points)
    check_values(path, points)
    return points, units or otherwise


def check_units(path: Path, units: object) -> None:
    if units not in UNITS:
        raise DataError(path, f"coordinates is {units!r}", 'write "normalized" or "pixel"')


def check_number(path: Path, number: int, expected: int, type_name: str = "pose") -> None:
    if number != expected:
        fix = channels_fix(type_name, number, "detect them again")
        if (number, expected) == (133, 134):
            fix = f"{COCO_FIX}; or, {fix}"
        elif number not in OPENPOSE_COUNTS:
            fix += f"; a dance needs one of {OPENPOSE_COUNTS}"
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
        found, fix = repr(values), "write one [x, y, confidence] per point"
        found = found if len(found) <= 40 else found[:37] + "..."
        raise DataError(path, f"keypoints is not a list of number triples ({found})", fix)
    return points


def followed_people(track: Track) -> list[int | None]:
    """Return which of the people in each of OpenPose's files is the dancer; None: they are not among them.

    Reads all files, once per track: OpenPose lists people in any order.
    """
    if "followed" not in track.memo:
        people = [_detections(path) for path in track.files]
        track.memo["most_people"] = max(map(len, people))
        dancer = largest_person(people, track.fps or USUAL_RATE)
        track.memo["followed"] = [None if one is None else one.details for one in dancer]
    return track.memo["followed"]


def _detections(path: Path) -> list:
    """Return the people of a file by their bodies; nobody where it is faulty, which its reading names."""
    found = []
    with contextlib.suppress(DataError, AttributeError, TypeError, KeyError):
        for number, person in enumerate(load_frame(path)["people"]):
            body = _part(path, person, "pose_keypoints_2d", (18, 25))
            if body[:, 2].any():
                found.append(box_around(body, number))
    return found


def _openpose_points(path: Path, people, num_points: int, person: Callable[[], int | None]) -> np.ndarray:
    """Return one of OpenPose's people in our order, float32 [K, 3]; all absent where they are not found."""
    if num_points not in OPENPOSE_COUNTS:
        fix = f"set the type's --guidance_input_channels to one of {OPENPOSE_COUNTS}"
        raise DataError(path, f"OpenPose's files give no {num_points} points", fix)
    if not isinstance(people, list) or any(not isinstance(person, dict) for person in people):
        raise DataError(path, "people is not a list of persons", "write it again with OpenPose")
    for one in people:  # whoever is followed: in a faulty file nobody is found
        _part(path, one, "pose_keypoints_2d", (18, 25))
    number = person() if people else None
    person = {} if number is None else people[number]
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
        expected = f"{' or '.join(str(3 * count) for count in sorted(counts))} expected"
        fix = f"write x, y and confidence of each of {' or '.join(map(str, sorted(counts)))} points"
        raise DataError(path, f"{key} has {len(values)} numbers, {expected}", fix)
    return _as_points(path, np.reshape(values, (-1, 3)).tolist())
