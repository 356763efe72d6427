"""Motion of pose tracks against values by hand: steady, trembling, sliding and copied dancers."""

import numpy as np
import pytest

from evaluation.metrics import motion
from evaluation.metrics.motion import ARMS, KineticSpace, Motion, motion_of
from system.errors import UserError

RATE = 10.0
NECK, RIGHT_HIP, LEFT_HIP, RIGHT_WRIST, RIGHT_ANKLE, LEFT_ANKLE = 1, 8, 11, 4, 10, 13
# 18 points in heights of the frame, a torso of 0.2
STANDING = np.array([
    (50, 20), (50, 30), (45, 30), (42, 40), (40, 50), (55, 30), (58, 40), (60, 50), (47, 50),
    (46, 70), (45, 90), (53, 50), (54, 70), (55, 90), (49, 18), (51, 18), (47, 19), (53, 19),
]) / 100  # fmt: skip


def standing(num_frames=20, num_points=18):
    points = np.zeros((num_frames, num_points, 3))
    points[:, :18, :2], points[:, :18, 2] = STANDING, 1
    return points


def walking(velocity=(0.02, 0.0), num_frames=20):
    """A body that moves as a whole, by so much of the frame's height in each frame."""
    points = standing(num_frames)
    points[..., :2] += np.arange(num_frames)[:, None, None] * velocity
    return points


def swaying(period, size=0.02, num_frames=120, seed=None):
    """Every joint on its own sine; of a seed, with phases of its own."""
    points = standing(num_frames)
    phases = np.zeros((18, 2)) if seed is None else np.random.default_rng(seed).uniform(0, 6.28, (18, 2))
    angles = 2 * np.pi * np.arange(num_frames)[:, None, None] / (period * RATE) + phases
    points[..., :2] += size * np.sin(angles)
    return motion_of(points, RATE, torso=0.2)


def test_lengths_are_of_the_torso_and_absent_points_are_none():
    points = standing(num_points=134)
    points[3, RIGHT_WRIST] = 0
    of_points = motion_of(points, RATE)
    assert motion.torso_length(points) == pytest.approx(0.2)
    assert of_points.places.shape == (20, 14, 2) and np.isnan(of_points.places[3, RIGHT_WRIST]).all()
    assert np.isnan(of_points.places).sum() == 2
    assert of_points.places[0, NECK] == pytest.approx([2.5, 1.5])
    assert motion_of(points, RATE, torso=0.1).places[0, NECK] == pytest.approx([5, 3])


def test_no_torso_is_one_line():
    points = standing()
    points[:, NECK] = 0
    with pytest.raises(UserError, match="no frame shows neck and hips"):
        motion_of(points, RATE)
    with pytest.raises(UserError, match="the order of 7 key points is not known"):
        motion_of(points[:, :7], RATE)
    with pytest.raises(UserError, match="the order of 7 key points is not known"):
        motion_of(points[:, :7], RATE, torso=0.2)


def test_speed_and_jerk_in_torso_lengths_and_seconds():
    walk = motion_of(walking((0.03, 0.04)), RATE)
    assert motion.speed(walk) == pytest.approx(0.05 * RATE / 0.2)
    assert motion.jerk(walk) == pytest.approx(0, abs=1e-6)
    cubic = standing()
    cubic[..., 0] += (np.arange(20)[:, None] / RATE) ** 3 * 0.2
    assert motion.jerk(motion_of(cubic, RATE, torso=0.2)) == pytest.approx(6)
    cubic[7, RIGHT_WRIST] = np.nan  # what is absent says nothing
    assert motion.jerk(motion_of(cubic, RATE, torso=0.2)) == pytest.approx(6)


def test_a_bone_that_grows_and_shrinks():
    points = standing()
    assert motion.bone_spread(motion_of(points, RATE), ARMS) == pytest.approx(0)
    forearm = points[0, RIGHT_WRIST, :2] - points[0, 3, :2]
    points[::2, RIGHT_WRIST, :2] += 0.02 * forearm / np.linalg.norm(forearm)  # by a tenth of the torso
    assert motion.bone_spread(motion_of(points, RATE), ARMS) == pytest.approx(0.05 / 4)


def test_over_long_bones_are_longer_than_those_of_training():
    limits = motion.bone_limits([motion_of(standing(), RATE)])
    assert limits.shape == (13,)
    assert motion.overlong_share(motion_of(standing(), RATE), limits) == 0
    points = standing()
    points[:10, RIGHT_WRIST, :2] += 1
    assert motion.overlong_share(motion_of(points, RATE), limits) == pytest.approx(1 / 26)
    points[:, RIGHT_WRIST] = 0
    assert motion.overlong_share(motion_of(points, RATE), limits) == 0


def test_only_feet_that_stand_can_skate():
    assert motion.foot_skate(motion_of(standing(), RATE)) == 0
    assert motion.foot_skate(motion_of(walking((0.02, 0)), RATE)) == pytest.approx(1)
    points = standing()
    points[:, RIGHT_ANKLE, :2] += np.arange(20)[:, None] * (0.02, 0) - (0, 0.05)  # a raised foot swings
    assert motion.foot_skate(motion_of(points, RATE)) == pytest.approx(0)
    points[:, LEFT_ANKLE] = points[:, RIGHT_ANKLE] = 0
    assert np.isnan(motion.foot_skate(motion_of(points, RATE)))


def test_a_jump_where_windows_meet():
    walk = walking()
    borders = [5, 10, 15]
    assert motion.seam_ratio(motion_of(walk, RATE), borders) == pytest.approx(1)
    walk[10:, :, 0] += 0.1
    assert motion.seam_ratio(motion_of(walk, RATE), borders) == pytest.approx((1 + 6 + 1) / 3)
    assert np.isnan(motion.seam_ratio(motion_of(walk, RATE), []))
    assert np.isnan(motion.seam_ratio(motion_of(standing(), RATE), borders))


def test_windows_overlap_by_half_and_a_short_track_is_one():
    track = Motion(np.arange(100)[:, None, None] * np.ones((1, 14, 2)), RATE)
    assert [int(one.places[0, 0, 0]) for one in track.windows(4)] == [0, 20, 40, 60]
    assert [len(one.places) for one in track.windows(20)] == [100]


def test_kinetics_tell_a_faster_dance_and_a_still_from_the_truth():
    truth = [swaying(1 + seed / 30, seed=seed) for seed in range(12)]
    windows = [window for one in truth for window in one.windows()]
    space = KineticSpace.of(windows)
    assert space.directions.shape == (8, 42)
    assert motion.fid_k(windows, windows, space) == pytest.approx(0, abs=1e-6)
    near = [swaying(1 + seed / 30, seed=seed + 50) for seed in range(12)]
    fast = [swaying(0.5 + seed / 60, seed=seed) for seed in range(12)]
    still = [motion_of(standing(40), RATE, torso=0.2)] * 12
    values = [motion.fid_k(some, windows, space) for some in (near, fast, still)]
    assert values[0] < 5 and values[0] < values[1] / 5 and values[1] < values[2]
    assert np.isnan(motion.fid_k(windows[:1], windows, space))
    assert motion.diversity(still, space) == 0
    assert motion.diversity(windows, space) == pytest.approx(1.25, abs=0.15)
    assert np.isnan(motion.diversity(windows[:1], space))


def test_a_joint_that_is_never_seen_is_an_average_one():
    points = walking()
    points[:, RIGHT_WRIST] = 0
    space = KineticSpace.of([motion_of(points, RATE), motion_of(walking((0.01, 0.01)), RATE)])
    assert np.isfinite(space.scaled([motion_of(points, RATE)])).all()


def test_tracks_apart_and_the_nearest_window():
    first, second = motion_of(standing(), RATE), motion_of(walking((0, 0)), RATE)
    assert motion.apart([first, second]) == 0
    shifted = standing()
    shifted[..., :2] += (0.03, 0.04)
    moved = motion_of(shifted, RATE)
    assert motion.apart([first, second, moved]) == pytest.approx(0.25 * 2 / 3)
    assert motion.nearest_window(moved, [first]) == pytest.approx(0)  # where the dancer stands is no motion
    raised = standing()
    raised[:, RIGHT_WRIST, 1] -= 0.2
    assert motion.nearest_window(motion_of(raised, RATE), [first]) == pytest.approx((1 / 14) ** 0.5)
    assert np.isnan(motion.nearest_window(motion_of(raised[:10], RATE), [first]))


def test_the_truth_beside_itself():
    truth = [swaying(1 + seed / 10, seed=seed) for seed in range(4)]
    found = motion.beside_truth(truth, truth)
    assert [found[name] for name in ("speed", "jerk", "bone_spread")] == pytest.approx([1, 1, 1])
    assert found["fid_k"] == pytest.approx(0, abs=1e-6)
    for name in ("foot_skate", "overlong", "diversity"):
        assert found[name] == found[f"{name}_truth"]
    larger = [swaying(1 + seed / 10, size=0.04, seed=seed) for seed in range(4)]
    found = motion.beside_truth(larger, truth, training=truth)
    assert found["speed"] == pytest.approx(2) and found["jerk"] == pytest.approx(2)
    assert found["fid_k"] > 1 and found["overlong"] > found["overlong_truth"]
    still = [motion_of(standing(), RATE)] * 2
    assert np.isnan(motion.beside_truth(still, still)["speed"])
