"""The dancer among the people in a video: detections linked to tracks, of which the largest is taken.

The whole piece is looked at before the choice, so that somebody who passes close to the camera is not taken
for the dancer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_STEP = 0.5  # of a person's size that its centre moves from one frame to the next, at most
MAX_SIZE_RATIO = 1.7
MAX_GAP_SECONDS = 1.0  # how long a person may be hidden and still be the same


@dataclass(frozen=True)
class Detection:
    """One person in one frame."""

    box: tuple[float, float, float, float]  # left, top, right, bottom, as fractions of the frame
    score: float = 1.0
    details: Any = None  # what the estimator wants back when this person's key points are asked for


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
