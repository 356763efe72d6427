"""One person stays one person: who is followed through a video, and where a track jumps all the same.

Detections are linked to tracks, of which the largest is taken. The whole video is looked at before the
choice, so that somebody who passes close to the camera is not taken for the dancer. Preparation, training,
sampling and evaluation follow by this one rule.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.transforms import Size

from .openpose import OPENPOSE_COUNTS, flip_order

MAX_STEP = 0.5  # of a person's size that its centre moves from one frame to the next, at most
MAX_SIZE_RATIO = 1.7
MAX_GAP_SECONDS = 1.0  # how long a person may be hidden and still be the same

# What a body cannot do, in its radius: the root mean square distance of its points from their centre, about
# 0.4 m of an adult. 58 minutes of recorded dance, seen from two sides at 25 to 30 frames per second, reach
# 0.27, 1.53 and 0.24 per frame where the recording itself leaps; elsewhere no exchange is above 0.03.
SHIFT, SHIFT_PER_SECOND = 0.6, 12.0  # of the whole body
REACH, REACH_PER_SECOND = 1.8, 30.0  # of a single point
EXCHANGE, EXCHANGE_SECONDS = 0.35, 0.15  # by which the two sides fit better exchanged; nobody turns so fast
WEAK_EXCHANGE, NEAR = 0.1, 50  # enough within so many frames of one that is certain: each begins and ends
LEAST_POINTS, LEAST_PAIRED = 5, 6  # that two frames share
LEAST_CONFIDENCE = 0.3  # of a single point
LEAST_RADIUS = 0.04  # of the frame's longer side: smaller people are all noise
SIZE_FRAMES = 25  # about the frame, whose median is the body's radius
NUM_BODY, MAX_RANGES = 18, 12
PEOPLE, SIDES, BODY = "jumps between two people", "exchanges left and right", "moves by more than a body can"


@dataclass(frozen=True)
class Detection:
    """One person in one frame."""

    box: tuple[float, float, float, float]  # left, top, right, bottom, as fractions of the frame
    score: float = 1.0
    details: Any = None  # what the estimator wants back when this person's key points are asked for


def box_around(points: np.ndarray, details: Any = None) -> Detection:
    """Return the detection of points [K, 3], at least one of them present; details: the points, or others."""
    present = points[points[:, 2] > 0]
    box = (*present[:, :2].min(axis=0), *present[:, :2].max(axis=0))
    return Detection(box, float(present[:, 2].mean()), points if details is None else details)


Track = dict[int, Detection]  # one person through the frames of a piece: {frame: detection}, in order


def largest_person(detections: Sequence[Sequence[Detection]], frame_rate: float) -> list[Detection | None]:
    """Return the largest person's detection in each frame of a piece, None where they are not seen."""
    tracks = link_tracks(detections, max_gap=max(1, round(MAX_GAP_SECONDS * frame_rate)))
    if not tracks:
        return [None] * len(detections)
    dancer = max(tracks, key=lambda track: sum(_size(detection) ** 2 for detection in track.values()))
    if _is_alone(dancer, detections):  # away for longer, and nobody else was ever there: the same person
        for track in tracks:
            if _is_alone(track, detections):
                dancer = dancer | track
    return [dancer.get(frame) for frame in range(len(detections))]


def link_tracks(detections: Sequence[Sequence[Detection]], *, max_gap: int) -> list[Track]:
    """Return a piece's tracks: each detection goes to the track that ended nearest, or begins its own."""
    tracks: list[Track] = []
    for frame, found in enumerate(detections):
        open_tracks = [track for track in tracks if frame - _last_frame(track) <= max_gap]
        pairs = sorted(
            (cost, number, person)
            for number, track in enumerate(open_tracks)
            for person, detection in enumerate(found)
            if (cost := _distance(track, detection, frame)) is not None
        )
        taken_tracks, taken_people = set(), set()
        for _, number, person in pairs:
            if number not in taken_tracks and person not in taken_people:
                taken_tracks.add(number)
                taken_people.add(person)
                open_tracks[number][frame] = found[person]
        tracks += [{frame: one} for person, one in enumerate(found) if person not in taken_people]
    return tracks


def _is_alone(frames: Iterable[int], detections: Sequence[Sequence[Detection]]) -> bool:
    """Return whether nobody else is seen in any of the frames."""
    return all(len(detections[frame]) == 1 for frame in frames)


def _distance(track: Track, detection: Detection, frame: int) -> float | None:
    """Return how far a detection is from where a track ended, in sizes of the person; None: too far."""
    last = track[_last_frame(track)]
    size, other_size = _size(last), _size(detection)
    ratio = max(size, other_size) / max(1e-6, min(size, other_size))
    step = float(np.linalg.norm(_centre(detection) - _centre(last))) / max(size, other_size, 1e-6)
    if ratio > MAX_SIZE_RATIO or step > MAX_STEP:
        return None
    return step + 0.5 * float(np.log(ratio)) + 0.01 * (frame - _last_frame(track))


def _last_frame(track: Track) -> int:
    return next(reversed(track))


def _centre(detection: Detection) -> np.ndarray:
    return np.reshape(detection.box, (2, 2)).mean(axis=0)


def _size(detection: Detection) -> float:
    """Return the side of a square as large as the person's box, as a fraction of the frame."""
    left, top, right, bottom = detection.box
    return float(np.sqrt(max(0.0, right - left) * max(0.0, bottom - top)))


# ---- jumps ----


def find_jumps(points: np.ndarray, frame_size: Size, seconds: np.ndarray) -> dict[str, list[int]]:
    """Return {what a track does: its frames}, of what no person does; {} of a sound track.

    points: [N, K, 3] in 0..1 of a frame of frame_size (height, width); seconds: when each is, [N]. Of an
    excursion all frames are named, of a jump for good the first.
    """
    body = points[:, :NUM_BODY] if points.shape[1] in OPENPOSE_COUNTS else points
    seen = np.flatnonzero((body[..., 2] > 0).sum(1) >= LEAST_POINTS)
    if len(seen) < 2:
        return {}
    places = np.where(body[..., 2:] > 0, body[..., :2] * frame_size[::-1], np.nan)[seen].astype(np.float64)
    steps = np.diff(seconds[seen])
    radius = _radius(places, frame_size)
    shifts, exchanges, reaches = _moves(places, body[seen, :, 2], radius)
    jumps = np.flatnonzero(shifts > np.maximum(SHIFT, SHIFT_PER_SECOND * steps))
    swaps = _swaps(np.where(steps <= EXCHANGE_SECONDS, exchanges, 0))
    found = {
        PEOPLE: _excursions(np.nanmedian(places, axis=1), jumps),
        SIDES: _exchanged(np.setdiff1d(swaps, jumps), len(seen)),
    }
    strides = reaches > np.maximum(REACH, REACH_PER_SECOND * steps)[:, None]
    strides[np.union1d(jumps, swaps).astype(int)] = False  # the whole body's are told already
    of_points = (_excursions(places[:, point], np.flatnonzero(strides[:, point]))
                 for point in np.flatnonzero(strides.any(0)))  # fmt: skip
    found[BODY] = sorted(set().union(*of_points))
    return {what: [int(seen[place]) for place in where] for what, where in found.items() if where}


def describe_frames(frames: Sequence[int]) -> str:
    """Return frames in words: "12, 40-43"."""
    ranges: list[list[int]] = []
    for frame in frames:
        if ranges and frame == ranges[-1][1] + 1:
            ranges[-1][1] = frame
        else:
            ranges.append([frame, frame])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return ", ".join(words[:MAX_RANGES]) + (
        f" and {len(words) - MAX_RANGES} more" * (len(words) > MAX_RANGES)
    )


def _radius(places: np.ndarray, frame_size: Size) -> np.ndarray:
    """Return the body's size about each frame [N], as the median of the frames around."""
    centre = np.nanmean(places, axis=1, keepdims=True)
    radius = np.sqrt(np.nanmean(((places - centre) ** 2).sum(-1), axis=1))
    around = np.pad(radius, SIZE_FRAMES // 2, mode="edge")
    around = np.median(np.lib.stride_tricks.sliding_window_view(around, SIZE_FRAMES), axis=-1)
    return np.maximum(around, LEAST_RADIUS * max(frame_size))


def _moves(
    places: np.ndarray, confidence: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how far each step is from what a body can: see SHIFT, EXCHANGE, REACH; 0 where little is seen.

    The first two are [N - 1], the third is of each point, [N - 1, K].
    """
    size, moved = np.minimum(radius[1:], radius[:-1]), np.diff(places, axis=0)
    shared = ~np.isnan(moved[..., 0])
    enough = shared.sum(1) >= LEAST_POINTS
    shifts = np.where(enough, np.linalg.norm(_median(moved, shared), axis=-1), 0) / size
    direct = np.nan_to_num(np.linalg.norm(moved, axis=-1))
    sure = (confidence[1:] >= LEAST_CONFIDENCE) & (confidence[:-1] >= LEAST_CONFIDENCE)
    reaches = np.where(sure, direct, 0) / size[:, None]
    if places.shape[1] != NUM_BODY:
        return shifts, np.zeros_like(shifts), reaches
    other = np.array(flip_order(NUM_BODY))
    crossed = np.linalg.norm(places[1:, other] - places[:-1], axis=-1)
    paired = shared & ~np.isnan(crossed) & (other != np.arange(NUM_BODY))
    gains = np.where(paired, direct - np.nan_to_num(crossed), 0).sum(1) / np.maximum(1, paired.sum(1))
    return shifts, np.where(paired.sum(1) >= LEAST_PAIRED, gains, 0) / size, reaches


def _median(moved: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Return the median [N - 1, 2] of the points that two frames share; 0 where they share none."""
    result = np.zeros(moved[:, 0].shape)
    some = shared.any(1)
    result[some] = np.nanmedian(moved[some], axis=1)
    return result


def _excursions(places: np.ndarray, jumps: Sequence[int]) -> list[int]:
    """Return the frames that jumps of places [N, 2] lead to, all of them where a second jump leads back."""
    found, jumps = [], list(jumps)
    while jumps:
        first = jumps.pop(0)
        end = first + 1
        if jumps:
            back = np.linalg.norm(places[jumps[0] + 1] - places[first])
            away = np.linalg.norm(places[first + 1] - places[first])
            end = jumps.pop(0) if back < away / 2 else end
        found += range(first + 1, end + 1)
    return found


def _swaps(exchanges: np.ndarray) -> np.ndarray:
    """Return the steps at which left and right are exchanged."""
    certain, weak = np.flatnonzero(exchanges > EXCHANGE), np.flatnonzero(exchanges > WEAK_EXCHANGE)
    if not len(certain):
        return certain
    return weak[np.abs(weak[:, None] - certain).min(1) <= NEAR]


def _exchanged(swaps: Sequence[int], num_frames: int) -> list[int]:
    """Return the frames whose sides are exchanged: the fewer of the two kinds between swaps."""
    is_other = np.zeros(num_frames, bool)
    for step in swaps:
        is_other[step + 1 :] ^= True
    return np.flatnonzero(is_other if is_other.sum() <= num_frames / 2 else ~is_other).tolist()
