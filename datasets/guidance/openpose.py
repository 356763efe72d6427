"""OpenPose's order of key points: 18 body, 6 feet, 68 face, 2 x 21 hands; its limbs, and its left and right.

A flipped dancer's right hand is a left hand: key points exchange their sides.
"""

OPENPOSE_COUNTS = (18, 24, 92, 134)  # body; with feet; with face; with hands
FACE = slice(24, 92)
HANDS = (slice(92, 113), slice(113, 134))  # left, right: the person's own

# OpenPose's BODY_25 in the order of 18 body points and 6 feet: its point 8, between the hips, is left out.
BODY_25 = (*range(8), *range(9, 19), *range(19, 25))

# The 18 body points: pairs of a limb, in the order of OpenPose's colours. 1 is the neck; 2-4 and 8-10 are the
# person's right arm and leg, on the viewer's left when the person faces the camera.
BODY_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
FOOT_LIMBS = ((13, 18), (13, 19), (13, 20), (10, 21), (10, 22), (10, 23))  # ankle to big toe, small toe, heel
HAND_LIMBS = tuple((0 if joint == 0 else 4 * finger + joint, 4 * finger + joint + 1)
                   for finger in range(5) for joint in range(4))  # fmt: skip

# For each of the 134 points, the one on the other side of the body.
_FLIPPED_BODY = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)
_FLIPPED_FEET = (21, 22, 23, 18, 19, 20)
_FLIPPED_FACE = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),  # jaw, brows, nose
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,  # eyes
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),  # lips, outer and inner
)  # fmt: skip
_FLIPPED_HANDS = (*range(113, 134), *range(92, 113))
_FLIPPED = (*_FLIPPED_BODY, *_FLIPPED_FEET, *(24 + point for point in _FLIPPED_FACE), *_FLIPPED_HANDS)


def flip_order(num_points: int) -> list[int]:
    """Return for each point the point that takes its place in a flipped frame.

    Raises ValueError for another number of points: of an unknown order nobody can tell left from right.
    """
    if num_points not in OPENPOSE_COUNTS:
        raise ValueError(f"{num_points} key points are not of OpenPose's order {OPENPOSE_COUNTS}")
    return list(_FLIPPED[:num_points])
