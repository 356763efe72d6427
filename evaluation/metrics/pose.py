"""Does the dancer take the driving pose? Key points found in a result, held against those that drove it.

Key points are float [F, K, 3]: x and y in pixels of the same frame, confidence; NaN or confidence 0 is
absent. `common_points` brings two sets of points to the same ones. An estimator makes mistakes of its own:
what it finds in the truth's frames, held against the same driving points, is the best that a result can have.
Each metric looks at one frame at a time and has nothing to say (NaN) where the driving pose is absent.
"""

import numpy as np

from datasets.guidance.openpose import BODY_25, OPENPOSE_COUNTS
from system.errors import UserError

BODY = slice(0, 18)  # of OpenPose's order
NECK, HIPS = 1, [8, 11]

# Where each point of OpenPose's order stands in another: the neck lies between the shoulders.
_BETWEEN_SHOULDERS, _ABSENT = -2, -1
_COCO_BODY = (0, _BETWEEN_SHOULDERS, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_ORDERS = {
    17: _COCO_BODY,
    25: BODY_25,
    33: (0, _BETWEEN_SHOULDERS, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7,
         31, _ABSENT, 29, 32, _ABSENT, 30),  # MediaPipe has no small toes
    133: (*_COCO_BODY, *range(17, 133)),
}  # fmt: skip
_SHOULDERS = {17: [5, 6], 25: [2, 5], 33: [11, 12], 133: [5, 6]}

# COCO's constants by OpenPose's body points; NaN: COCO has no neck.
_COCO_SIGMAS = np.array([
    0.026, np.nan, 0.079, 0.072, 0.062, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089, 0.107, 0.087, 0.089,
    0.025, 0.025, 0.035, 0.035,
])  # fmt: skip
_AREA_OF_BOX = 0.53


def common_points(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both sets of key points reduced to those they share, [F, K, 3] each, in OpenPose's order.

    Known are OpenPose's 18, 24, 92 and 134 points, BODY_25, COCO's 17 and COCO-WholeBody's 133, MediaPipe's
    33. 17 are taken for COCO's, not Human3.6M's. Two sets of the same unknown number of points are returned
    as they are. Raises UserError when points cannot be matched.
    """
    orders = [openpose_points(points) for points in (first, second)]
    if orders[0] is None or orders[1] is None:
        counts = first.shape[1], second.shape[1]
        if counts[0] == counts[1]:
            return first, second
        unknown = counts[0] if orders[0] is None else counts[1]
        known = ", ".join(map(str, sorted((*OPENPOSE_COUNTS, *_ORDERS))))
        raise UserError(
            f"{counts[0]} and {counts[1]} key points cannot be matched: the order of {unknown} is not known; "
            f"write poses of {known} points"
        )
    num_points = min(points.shape[1] for points in orders)  # each set begins as the smaller ones
    return orders[0][:, :num_points], orders[1][:, :num_points]


def openpose_points(points: np.ndarray) -> np.ndarray | None:
    """Return key points [F, K, 3] in OpenPose's order; None where the order of K points is not known."""
    points = np.asarray(points, np.float64)
    count = points.shape[1]
    if count not in _ORDERS:
        return points if count in OPENPOSE_COUNTS else None
    shoulders = points[:, _SHOULDERS[count]]
    neck = shoulders.mean(axis=1, keepdims=True)
    neck[..., 2] = shoulders[..., 2].min(axis=1, keepdims=True)
    absent = np.zeros_like(neck)
    return np.concatenate([points, neck, absent], axis=1)[:, list(_ORDERS[count])]


def present_points(points: np.ndarray) -> np.ndarray:
    """Return bool [..., K]: whether each of points [..., K, 3] is there."""
    return np.isfinite(points).all(axis=-1) & (points[..., 2] > 0)


def pck(
    predicted: np.ndarray, driving: np.ndarray, *, threshold: float = 0.2, points: slice = BODY
) -> np.ndarray:
    """Return the share of driving points that the result has in place, float64 [F] in 0..1; higher is better.

    In place: within `threshold` times the driving torso (neck to the middle of the hips) of that frame. A
    point that the estimator does not find counts as misplaced. PCK of Yang and Ramanan (TPAMI 2013) with a
    fifth of the torso, as usual for FLIC and JHMDB. Counted are the 18 body points, unless `points` says
    which of OpenPose's order. Limits: a torso bent towards the camera is short, and the frame strict; NaN
    where it is not seen. Raises UserError for points of unknown order, which have no torso.
    """
    predicted, driving = _checked(predicted, driving, "PCK")
    is_there, hips = present_points(driving), driving[:, HIPS]
    torso = np.linalg.norm(driving[:, NECK, :2] - hips[..., :2].mean(axis=1), axis=-1)
    has_torso = is_there[:, [NECK, *HIPS]].all(axis=1) & (torso > 0)
    is_placed = _distances(predicted, driving) <= threshold * torso[:, None]  # False for NaN
    counted = is_there & has_torso[:, None]
    return _mean(is_placed[:, points], counted[:, points])


def akd(predicted: np.ndarray, driving: np.ndarray, *, points: slice | None = None) -> np.ndarray:
    """Return the mean distance of the result's points from the driving ones, in pixels, float64 [F].

    0 is best. Average Key-point Distance of the First Order Motion Model (arXiv:2003.00196), over points that
    are present in both. Limits: it depends on the size of frame and dancer, and points that are not found
    cost nothing, so read it beside `pck`. Counted are the 18 body points, or all of an unknown order, unless
    `points` says which. NaN where no point is shared.
    """
    predicted, driving = _checked(predicted, driving)
    if points is None:
        points = BODY if driving.shape[1] in OPENPOSE_COUNTS else slice(None)
    distances = _distances(predicted, driving)
    return _mean(distances[:, points], np.isfinite(distances[:, points]))


def oks(predicted: np.ndarray, driving: np.ndarray) -> np.ndarray:
    """Return the Object Keypoint Similarity of the result's pose, float64 [F] in 0..1; higher is better.

    The mean over driving points of exp(-d^2 / (2 area (2 sigma)^2)), d the distance in pixels, sigma COCO's
    constant for the joint (`kpt_oks_sigmas` of cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py); a
    point that is not found gives 0. Counted are COCO's 17 joints: of OpenPose's body all but the neck. COCO's
    area is that of the person's outline, which a pose has not; here it is 0.53 of the box around the driving
    joints, as in jin-s13/xtcocoapi (xtcocotools/cocoeval.py) where no outline is known. Limits: joints may be
    off by a tenth of the body's size before it falls much; a dancer who is thin in the frame is judged more
    strictly. NaN where fewer than two driving joints are seen. Raises UserError for points of unknown order.
    """
    predicted, driving = _checked(predicted, driving, "OKS")
    has_sigma = np.isfinite(_COCO_SIGMAS)
    predicted, driving = predicted[:, BODY][:, has_sigma], driving[:, BODY][:, has_sigma]
    is_there = present_points(driving)[..., None]
    lowest = np.where(is_there, driving, np.inf)[..., :2].min(axis=1)
    highest = np.where(is_there, driving, -np.inf)[..., :2].max(axis=1)
    area = _AREA_OF_BOX * np.prod(np.maximum(highest - lowest, 0), axis=1)  # nobody there: 0
    squares = 2 * area[:, None] * (2 * _COCO_SIGMAS[has_sigma]) ** 2
    distances = _distances(predicted, driving)
    exponents = np.divide(distances**2, squares, out=np.full(squares.shape, np.nan), where=squares > 0)
    similarity = np.where(np.isfinite(exponents), np.exp(-exponents), 0)
    return _mean(similarity, is_there[..., 0] & (area > 0)[:, None])


def _checked(predicted: np.ndarray, driving: np.ndarray, name: str | None = None) -> tuple:
    """Return both as float64. A metric with a name knows its joints. Raises ValueError, UserError."""
    predicted, driving = np.asarray(predicted, np.float64), np.asarray(driving, np.float64)
    if predicted.shape != driving.shape:
        raise ValueError(f"shapes {predicted.shape} and {driving.shape}: use common_points first")
    if name and driving.shape[1] not in OPENPOSE_COUNTS:
        raise UserError(
            f"{name} must know the joints, and the order of {driving.shape[1]} key points is not known; "
            f"write poses of {', '.join(map(str, OPENPOSE_COUNTS))} points in OpenPose's order"
        )
    return predicted, driving


def _distances(predicted: np.ndarray, driving: np.ndarray) -> np.ndarray:
    """Return distances in pixels [F, K]; NaN where either point is absent."""
    both = present_points(predicted) & present_points(driving)
    distances = np.linalg.norm(predicted[..., :2] - driving[..., :2], axis=-1)
    return np.where(both, distances, np.nan)


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the mean of those values [F, K] that count, [F]; NaN where none does."""
    number = counted.sum(axis=1)
    total = np.where(counted, values, 0).sum(axis=1)
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)
