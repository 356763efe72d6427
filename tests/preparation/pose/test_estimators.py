"""One person is followed through a whole video, whatever the estimator."""

import numpy as np

from preparation.pose.estimators import NUM_POINTS, UserPoseEstimator, follow_dancer


def person(left: float, size: float) -> np.ndarray:
    """Points on a diagonal from (left, 0.1), all present."""
    along = np.linspace(0, size, NUM_POINTS)
    return np.stack([left + along, 0.1 + along, np.ones(NUM_POINTS)], axis=1)


def test_the_largest_person_is_followed_and_a_repeated_frame_is_looked_at_once():
    looked_at = []

    def two_people(frame):
        looked_at.append(int(frame[0, 0, 0]))
        people = [person(0.1, 0.2), person(0.4, 0.5)]
        return np.stack(people[:: 1 if frame[0, 0, 0] % 2 else -1])  # in any order

    frames = [np.full((8, 8, 3), number, np.uint8) for number in (0, 1, 2)]
    frames.insert(2, frames[1])  # the very array again
    points = follow_dancer(UserPoseEstimator("two", two_people), lambda: iter(frames), 24.0)
    assert points.shape == (4, NUM_POINTS, 3) and looked_at == [0, 1, 2]
    np.testing.assert_allclose(points[:, 0, 0], 0.4, atol=1e-6)


def test_nobody_is_absent_in_every_frame():
    frames = [np.zeros((8, 8, 3), np.uint8) for _ in range(2)]
    assert not follow_dancer(UserPoseEstimator("none", lambda frame: None), lambda: iter(frames), 24.0).any()
