"""Poses of every n-th frame, and the frames between them: `--pose_stride`.

Frames are counted from the video's first one. A piece's first and last frame are estimated in any case, so
that every other frame lies between two.
"""

from collections.abc import Sequence

import numpy as np

from datasets.guidance.people import Detection, largest_person, link_tracks

from .estimators import PoseEstimator

People = Sequence[Detection] | None  # in a frame; None: it was not looked at


def dancer_of(people: Sequence[People], frame_rate: float, stride: int) -> list[Detection | None]:
    """Return the largest person's detection in each frame of a piece; None where not seen or looked for."""
    looked_at = [frame for frame, found in enumerate(people) if found is not None]
    dancer: list[Detection | None] = [None] * len(people)
    seen = largest_person([people[frame] for frame in looked_at], frame_rate / stride)
    for frame, person in zip(looked_at, seen, strict=True):
        dancer[frame] = person
    return dancer


class WantedPoses:
    """The dancer's poses in a piece, estimated in the frames that were looked at, and the first and last."""

    def __init__(
        self, estimator: PoseEstimator, people: Sequence[People], dancer: Sequence[Detection | None]
    ) -> None:
        self._estimator, self._people, self._dancer = estimator, people, dancer
        self._looked_at = [frame for frame, found in enumerate(people) if found is not None]
        estimator.start_piece()

    def points(self, number: int, frame: np.ndarray) -> np.ndarray | None:
        """Return the dancer's points [K, 3] in a frame, uint8 [H, W, 3]; None: to be interpolated."""
        if self._people[number] is not None:
            person = self._dancer[number]
        elif number in (0, len(self._people) - 1):
            person = self._same_person(number, self._estimator.find_people(frame))
        else:
            return None
        return np.asarray(self._estimator.key_points(frame, person), np.float32)

    def _same_person(self, number: int, found: Sequence[Detection]) -> Detection | None:
        """Return who of the people in a frame is the dancer of the frame nearest to it."""
        if not self._looked_at:
            return largest_person([found], 1.0)[0]
        known = self._dancer[min(self._looked_at, key=lambda frame: abs(frame - number))]
        return None if known is None else link_tracks([[known], found], max_gap=1)[0].get(1)


def fill_between(poses: Sequence[np.ndarray | None], seconds: np.ndarray) -> np.ndarray:
    """Return all poses [N, K, 3], those that are None interpolated over the time between their neighbours.

    A point that is absent in one of the two is absent between them; else it has the lower confidence.
    """
    known = [frame for frame, pose in enumerate(poses) if pose is not None]
    filled = list(poses)
    for before, after in zip(known[:-1], known[1:], strict=True):
        first, last = poses[before], poses[after]
        confidence = np.minimum(first[:, 2:], last[:, 2:])
        span = seconds[after] - seconds[before]
        for frame in range(before + 1, after):
            share = (seconds[frame] - seconds[before]) / span if span else 0.0
            places = (1 - share) * first[:, :2] + share * last[:, :2]
            between = np.concatenate([places, confidence], axis=1)
            filled[frame] = np.where(confidence > 0, between, 0).astype(np.float32)
    return np.stack(filled)
