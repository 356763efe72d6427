"""MediaPipe's landmarks (33 body, 468 face, 21 per hand) in the order of the 134 OpenPose points."""

import numpy as np

from .estimators import absent_points, keep_inside

# MediaPipe's number of each OpenPose body point; the neck (1) lies between the shoulders.
BODY = {0: 0, 2: 12, 3: 14, 4: 16, 5: 11, 6: 13, 7: 15, 8: 24, 9: 26, 10: 28, 11: 23, 12: 25, 13: 27,
        14: 5, 15: 2, 16: 8, 17: 7}  # fmt: skip
NECK, SHOULDERS = 1, (11, 12)
# Left big toe, left heel, right big toe, right heel; MediaPipe has no small toes (19 and 22).
FEET = {18: 31, 20: 29, 21: 32, 23: 30}
HEAD, WRISTS = slice(0, 11), {"left": 15, "right": 16}
FIRST_FACE, FIRST_LEFT_HAND, FIRST_RIGHT_HAND = 24, 92, 113

# The face mesh's vertices nearest to iBUG's 68 points: jaw, brows, nose, eyes, outer and inner lips.
FACE = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip


def to_134_points(
    pose: np.ndarray,
    face: np.ndarray | None = None,
    left_hand: np.ndarray | None = None,
    right_hand: np.ndarray | None = None,
) -> np.ndarray:
    """Return float32 [134, 3]: x and y as fractions of the frame, confidence.

    pose [33, 3] (x, y, visibility), face [468, 3] and hands [21, 3], of which x and y count: the models of
    face and hands have no score for a point, so their points carry the head's mean visibility and that of the
    wrist.
    """
    points = absent_points()
    numbers = BODY | FEET
    points[list(numbers)] = pose[list(numbers.values())]
    points[NECK] = pose[list(SHOULDERS)].mean(axis=0)
    points[NECK, 2] = pose[list(SHOULDERS), 2].min()
    parts = (
        (FIRST_FACE, None if face is None else face[list(FACE)], pose[HEAD, 2].mean()),
        (FIRST_LEFT_HAND, left_hand, pose[WRISTS["left"], 2]),
        (FIRST_RIGHT_HAND, right_hand, pose[WRISTS["right"], 2]),
    )
    for first, part, confidence in parts:
        if part is not None:
            points[first : first + len(part), :2] = part[:, :2]
            points[first : first + len(part), 2] = confidence
    return keep_inside(points)
