"""Frames between estimated ones: interpolated where both neighbours have a point; both ends are estimated."""

import numpy as np

from datasets.guidance.people import box_around
from preparation.pose.estimators import NUM_POINTS
from preparation.pose.stride import WantedPoses, dancer_of, fill_between


def pose(x, confidence=0.9):
    return np.tile(np.float32([x, 0.5, confidence]), (NUM_POINTS, 1))


def test_points_between_two_lie_between_them_in_time():
    poses = [pose(0.1), None, None, pose(0.4, 0.6), None, pose(0.2)]
    poses[5][7] = 0  # absent
    filled = fill_between(poses, np.array([0, 1, 2, 4, 5, 6]) / 10)
    assert filled.dtype == np.float32 and filled.shape == (6, NUM_POINTS, 3)
    np.testing.assert_allclose(filled[:, 0, 0], [0.1, 0.175, 0.25, 0.4, 0.3, 0.2], atol=1e-6)
    np.testing.assert_allclose(filled[:, 0, 2], [0.9, 0.6, 0.6, 0.6, 0.6, 0.9], atol=1e-6)
    assert not filled[4, 7].any() and filled[2, 7].any()


def test_without_gaps_nothing_changes():
    poses = [np.random.default_rng(k).random((NUM_POINTS, 3), np.float32) for k in range(3)]
    np.testing.assert_array_equal(fill_between(poses, np.arange(3.0)), np.stack(poses))


class Walker:
    """Two people: the dancer, and a larger one who is not in every frame. A frame is its own number."""

    def __init__(self):
        self.asked = []

    def start_piece(self):
        self.asked.clear()

    def find_people(self, number):
        bystander = square(0.8, 0.2) if number == 9 else None
        return [one for one in (bystander, square(0.1 + 0.02 * number, 0.15)) if one is not None]

    def key_points(self, number, person):
        self.asked.append(number)
        return pose(sum(person.box[::2]) / 2)


def square(x, half):
    return box_around(np.array([[x - half, 0.5 - half, 1], [x + half, 0.5 + half, 1]]))


def test_every_nth_frame_and_both_ends_are_estimated():
    walker = Walker()
    people = [
        walker.find_people(k) if (k + 2) % 3 == 0 else None for k in range(10)
    ]
    people[9] = None
    dancer = dancer_of(people, 30.0, 3)
    assert [frame for frame, person in enumerate(dancer) if person is not None] == [1, 4, 7]
    wanted = WantedPoses(walker, people, dancer)
    poses = [wanted.points(number, number) for number in range(10)]
    assert walker.asked == [0, 1, 4, 7, 9]
    filled = fill_between(poses, np.arange(10) / 30)
    np.testing.assert_allclose(filled[:, 0, 0], 0.1 + 0.02 * np.arange(10), atol=1e-6)
