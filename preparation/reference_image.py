"""The choice of the reference image: the sharpest frame in which the whole body is seen."""

from dataclasses import dataclass

import cv2
import numpy as np

# By OpenPose's order: nose, neck, shoulders, elbows, wrists, hips, knees, ankles.
WHOLE_BODY = tuple(range(14))
SURE = 0.5  # confidence from which a point counts as seen
PERSON_SIDE = 256  # the person is measured at about this size, so that near and far compare


@dataclass(frozen=True)
class Candidate:
    """A frame's worth as a reference: more of the body first, then sharpness."""

    frame: int
    num_seen: int  # of WHOLE_BODY
    sharpness: float

    def describe(self) -> str:
        """Return a note for the user where the whole body is not seen, else an empty text."""
        if self.num_seen == len(WHOLE_BODY):
            return ""
        return (
            f"no frame shows the whole body: the reference image is frame {self.frame}, "
            f"with {self.num_seen} of {len(WHOLE_BODY)} body points"
        )


def rate_frame(frame_number: int, frame: np.ndarray, points: np.ndarray) -> Candidate:
    """Return the worth of a frame, uint8 [H, W, 3]; points: its key points [134, 3], as fractions of it."""
    seen = int((points[list(WHOLE_BODY), 2] >= SURE).sum())
    return Candidate(frame_number, seen, _sharpness(_crop_person(frame, points)))


def better(candidate: Candidate, other: Candidate | None) -> Candidate:
    """Return the better of the two; of equals the earlier."""
    if other is None:
        return candidate
    return max(other, candidate, key=lambda one: (one.num_seen, one.sharpness))


def _crop_person(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the frame's part with the person: the background is often sharp while the dancer is blurred."""
    present = points[points[:, 2] > 0, :2] * frame.shape[1::-1]
    if len(present) < 2:
        return frame
    left, top = np.floor(present.min(axis=0)).astype(int)
    right, bottom = np.ceil(present.max(axis=0)).astype(int)
    crop = frame[max(0, top) : bottom + 1, max(0, left) : right + 1]
    return crop if min(crop.shape[:2]) >= 8 else frame


def _sharpness(image: np.ndarray) -> float:
    """Return the variance of the Laplacian: fine detail, which motion blur takes away."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    scale = PERSON_SIDE / max(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())
