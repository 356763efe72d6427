"""How a video goes from frame to frame: flicker, jumps, and seams between the windows of a long video.

All take uint8 RGB frames [F, H, W, 3] and return float64 [F - 1]: value i is of frames i and i + 1.
"""

from collections.abc import Iterable

import cv2
import numpy as np

from datasets.guidance.openpose import BODY_LIMBS, FOOT_LIMBS, OPENPOSE_COUNTS
from datasets.guidance.people import LEAST_CONFIDENCE

from .pixels import check_frames

BODY_RADIUS = 0.5  # of the longest visible limb: what is around the skeleton is the person too
HULL_RADIUS = 0.15  # of the diagonal of all points, where their limbs are unknown
LEAST_BACKGROUND = 0.05  # of the frame
SMALLEST_JUMP = 0.01  # levels: a still video has ratios of 1, not of 0 to 0
NEIGHBOURS = 2  # jumps on each side


def dtssd(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return how differently from the truth a video changes, in levels, 0 to 510; lower is better.

    sqrt(mean(((P[i+1] - P[i]) - (T[i+1] - T[i]))^2)) over pixels and channels (Erofeev et al., Perceptually
    Motivated Benchmark for Video Matting, BMVC 2015). Sees flicker, dropped frames and seams; blind to an
    error that stays the same, as a colour shift; blur and wrong poses count as far as they move. The dtSSD of
    DisCo's code is a mean of squares without root, of frames of 256 x 256 pixels scaled as its networks want.

    Raises ValueError for frames of another type, or of different shapes.
    """
    check_frames(prediction, truth)
    errors = (cv2.subtract(*frames, dtype=cv2.CV_16S) for frames in zip(prediction, truth, strict=True))
    changes, last = [], None
    for error in errors:
        if last is not None:
            changes.append(np.sqrt(cv2.norm(error, last, cv2.NORM_L2SQR) / error.size))
        last = error
    return np.array(changes, np.float64)


def frame_jumps(prediction: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of neighbouring frames in levels, 0 to 255: motion, flicker, cuts.

    Neither high nor low is good by itself: a dance moves. Compare with the truth's own, at one frame rate.

    Raises ValueError for frames of another type.
    """
    check_frames(prediction)
    jumps = [
        cv2.norm(after, before, cv2.NORM_L1) / after.size
        for before, after in zip(prediction[:-1], prediction[1:], strict=True)
    ]
    return np.array(jumps, np.float64)


def background_flicker(prediction: np.ndarray, key_points: np.ndarray) -> np.ndarray:
    """Return the mean absolute change beside the person in levels, 0 to 255; lower is better.

    Beside the person is what is further from both frames' skeletons than half the longest visible limb
    (points of confidence 0.3 and more; of an unknown number of points: further than 0.15 of their diagonal
    from their convex hull). NaN where nobody is visible or less than 5 % of the frame is left. A camera or a
    background that really moves counts, too, as do shadows and wide clothes: compare with the truth's own.

    Raises ValueError for frames of another type, or key points of another number of frames.
    """
    check_frames(prediction)
    if len(key_points) != len(prediction):
        raise ValueError(f"key points of {len(key_points)} frames, expected {len(prediction)}")
    changes, before, beside_before = [], None, None
    for frame, points in zip(prediction, key_points, strict=True):
        beside = _beside_person(points, frame.shape[:2])
        if before is not None:
            changes.append(_change(before, frame, beside_before, beside))
        before, beside_before = frame, beside
    return np.array(changes, np.float64)


def seam_ratio(jumps: np.ndarray, borders: Iterable[int]) -> tuple[float, int]:
    """Return how much larger the jumps at the windows' borders are, and at how many borders that was seen.

    jumps: frame_jumps of the whole video [N - 1]; borders: numbers of the frames at which a window begins (0
    and those after the end are passed over). The median of the jumps at the borders over the median of the
    others, where each jump is first divided by the median of the two on either side of it that are at no
    border: so the dance's own rhythm cancels. 1 is no seam, a hard cut is above 3. (NaN, 0) without borders.
    Blind where windows fade into each other over several frames, and where fewer than half of the borders
    have a seam. An encoder that puts its key frames at the borders can make seams of its own.
    """
    jumps = np.maximum(np.asarray(jumps, np.float64), SMALLEST_JUMP)
    at_border = np.isin(np.arange(1, len(jumps) + 1), list(borders))
    relative = jumps / _median_around(np.where(at_border, np.nan, jumps))
    at_borders, elsewhere = (some[np.isfinite(some)] for some in (relative[at_border], relative[~at_border]))
    if not len(at_borders) or not len(elsewhere):
        return float("nan"), 0
    return float(np.median(at_borders) / np.median(elsewhere)), len(at_borders)


# ---- steps ----


def _median_around(jumps: np.ndarray) -> np.ndarray:
    """Return the median of the neighbours of each value, itself and NaN left out; NaN where none is left."""
    padded = np.pad(jumps, NEIGHBOURS, constant_values=np.nan)
    shifts = [shift for shift in range(2 * NEIGHBOURS + 1) if shift != NEIGHBOURS]
    around = np.stack([padded[shift : shift + len(jumps)] for shift in shifts])
    medians = np.full(len(jumps), np.nan)
    some = np.isfinite(around).any(axis=0)
    medians[some] = np.nanmedian(around[:, some], axis=0)
    return medians


def _change(before: np.ndarray, frame: np.ndarray, *beside: np.ndarray | None) -> float:
    """Return the mean absolute difference of two frames where both masks (None: nobody) are set."""
    if any(mask is None for mask in beside):
        return np.nan
    background = cv2.bitwise_and(*beside)
    if cv2.countNonZero(background) < LEAST_BACKGROUND * background.size:
        return np.nan
    return sum(cv2.mean(cv2.absdiff(frame, before), background)[:3]) / 3


def _beside_person(points: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Return 255 where the person of points [K, 3] is not, 0 where they are, uint8 [H, W]; None: nobody."""
    seen = (points[:, 2] >= LEAST_CONFIDENCE) & np.isfinite(points[:, :2]).all(axis=1)
    if not seen.any():
        return None
    places = np.zeros((len(points), 2), np.float32)
    places[seen] = np.clip(points[seen, :2], -4 * max(size), 5 * max(size))  # OpenCV draws in 32-bit integers
    limbs = []
    if len(points) in OPENPOSE_COUNTS:
        of_body = (limb for limb in BODY_LIMBS + FOOT_LIMBS if max(limb) < len(points))
        limbs = [places[list(limb)] for limb in of_body if seen[list(limb)].all()]
    if limbs:
        radius = BODY_RADIUS * max(np.linalg.norm(end - start) for start, end in limbs)
    else:
        limbs = [cv2.convexHull(places[seen])[:, 0]]
        radius = HULL_RADIUS * np.linalg.norm(np.ptp(places[seen], axis=0))
    outlines = [np.rint(limb).astype(np.int32) for limb in limbs]
    beside = np.full(size, 255, np.uint8)
    for outline in outlines:
        cv2.fillConvexPoly(beside, outline, 0)
    cv2.polylines(beside, outlines, True, 0, thickness=max(1, round(2 * float(radius))))
    return beside
