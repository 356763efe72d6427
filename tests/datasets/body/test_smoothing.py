"""Smoothing: trembling goes, movement and gaps stay."""

import numpy as np
import pytest
from scipy.signal import savgol_filter

from datasets.body.smoothing import smooth_poses


def trembling(num_frames, num_points=3):
    points = np.random.default_rng(0).normal(size=(num_frames, num_points, 3))
    points[..., 2] = 0.7
    return points


@pytest.mark.parametrize(("num_frames", "rate", "window"), [
    (7, 25, 7), (40, 24, 7), (40, 30, 7), (40, 60, 15), (40, 12, 5), (5, 30, 5), (6, 30, 5),
])  # fmt: skip
def test_is_the_filter_of_savitzky_and_golay(num_frames, rate, window):
    points = trembling(num_frames)
    found = smooth_poses(points, rate)
    np.testing.assert_allclose(found[..., :2], savgol_filter(points[..., :2], window, 2, axis=0), atol=1e-6)
    np.testing.assert_allclose(found[..., 2], 0.7)


def test_gaps_are_not_crossed():
    points = trembling(30)
    points[10:13, 1] = 0
    points[20:22, 1] = 0
    found = smooth_poses(points, 25)
    for start, end in ((0, 10), (13, 20), (22, 30)):
        np.testing.assert_array_equal(found[start:end, 1:2], smooth_poses(points[start:end, 1:2], 25))
    assert not found[10:13, 1].any() and not found[20:22, 1].any()
    np.testing.assert_array_equal(found[:, [0, 2]], smooth_poses(points[:, [0, 2]], 25))


def test_short_runs_and_no_frames_stay():
    points = trembling(4)
    np.testing.assert_array_equal(smooth_poses(points, 25), points.astype(np.float32))
    assert smooth_poses(points[:0], 25).shape == (0, 3, 3)


def test_trembling_falls_by_half_and_the_turn_of_a_movement_stays():
    seconds = np.arange(200) / 25
    points = np.ones((200, 1, 3))
    points[:, 0, 0] = 0.1 * np.sin(2 * np.pi * 2 * seconds)  # a movement there and back on each beat of 120
    points[:, 0, 1] = np.random.default_rng(1).normal(0, 0.001, 200)
    found = smooth_poses(points, 25)
    trembles = lambda track: np.abs(np.diff(track[:, 0, 1], 2)).mean()  # noqa: E731
    assert trembles(found) < 0.25 * trembles(points)
    assert np.ptp(found[:, 0, 0]) > 0.97 * np.ptp(points[:, 0, 0])
