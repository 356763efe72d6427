"""PCK, AKD and OKS against values by hand; points of several orders brought together."""

import numpy as np
import pytest

from datasets.guidance.openpose import BODY_25
from evaluation.metrics.pose import akd, common_points, oks, pck
from system.errors import UserError

TORSO = 100.0
NECK, RIGHT_WRIST, LEFT_WRIST = 1, 4, 7
# OpenPose's 18 body points of somebody who stands, in pixels: neck at (200, 100), hips 100 below.
STANDING = np.array([
    (200, 70), (200, 100), (175, 100), (160, 150), (150, 195), (225, 100), (240, 150), (250, 195), (185, 200),
    (183, 290), (180, 380), (215, 200), (217, 290), (220, 380), (193, 63), (207, 63), (186, 66), (214, 66),
], float)  # fmt: skip


def standing(num_frames=1, num_points=18):
    points = np.zeros((num_frames, num_points, 3))
    points[:, :18, :2], points[:, :18, 2] = STANDING, 0.9
    return points


def moved(point, by):
    points = standing()
    points[0, point, :2] += by
    return points


def test_truth_against_itself_is_best():
    points = standing(num_frames=3)
    assert pck(points, points).tolist() == [1, 1, 1]
    assert akd(points, points).tolist() == [0, 0, 0]
    assert oks(points, points).tolist() == [1, 1, 1]


def test_pck_counts_points_within_a_fifth_of_the_torso():
    assert pck(moved(RIGHT_WRIST, (12, 16)), standing()).item() == 1  # 20 pixels, on the border
    assert pck(moved(RIGHT_WRIST, (12, 16.1)), standing()).item() == pytest.approx(17 / 18)
    assert pck(moved(RIGHT_WRIST, (12, 16)), standing(), threshold=0.19).item() == pytest.approx(17 / 18)


def test_akd_is_the_mean_distance_in_pixels():
    assert akd(moved(RIGHT_WRIST, (3, 4)), standing()).item() == pytest.approx(5 / 18)


def test_oks_is_cocos_formula():
    area = 0.53 * (250 - 150) * (380 - 63)
    expected = (16 + np.exp(-(10**2) / (2 * area * (2 * 0.062) ** 2))) / 17
    assert oks(moved(LEFT_WRIST, (6, 8)), standing()).item() == pytest.approx(expected, abs=1e-12)
    assert oks(moved(NECK, (60, 80)), standing()).item() == 1  # COCO has no neck


def test_a_point_that_is_not_found_counts_as_wrong_and_has_no_distance():
    found = moved(RIGHT_WRIST, (3, 4))
    found[0, LEFT_WRIST] = 0
    assert pck(found, standing()).item() == pytest.approx(17 / 18)
    assert akd(found, standing()).item() == pytest.approx(5 / 17)
    assert oks(found, standing()).item() < 16 / 17
    nobody = np.zeros((1, 18, 3))
    assert (pck(nobody, standing()).item(), oks(nobody, standing()).item()) == (0, 0)
    assert np.isnan(akd(nobody, standing())).all()


@pytest.mark.parametrize("absent", [(np.nan, np.nan, 0.9), (0, 0, 0), (5, 5, np.nan)])
def test_absent_driving_points_are_masked(absent):
    driving = standing()
    driving[0, LEFT_WRIST] = absent
    found = moved(RIGHT_WRIST, (0, 90))
    assert pck(found, driving).item() == pytest.approx(16 / 17)
    assert akd(found, driving).item() == pytest.approx(90 / 17)
    assert oks(standing(), driving).item() == 1


def test_frames_without_a_driving_pose_have_nothing_to_say():
    driving = standing(num_frames=2)
    driving[1] = 0
    for metric in (pck, akd, oks):
        values = metric(standing(num_frames=2), driving)
        assert np.isfinite(values[0]) and np.isnan(values[1])
    driving[0, 8] = 0  # a hip: no torso
    assert np.isnan(pck(standing(num_frames=2), driving)).all()


def test_quality_falls_with_the_distance():
    noise = np.random.default_rng(0).standard_normal((40, 18, 2))
    levels = []
    for scale in (0, 3, 10, 30):
        found = standing(num_frames=40)
        found[..., :2] += scale * noise
        levels.append([metric(found, standing(num_frames=40)).mean() for metric in (pck, akd, oks)])
    shares, distances, similarities = np.array(levels).T
    assert (np.diff(distances) > 0).all() and (np.diff(similarities) < 0).all()
    assert shares[0] == shares[1] == 1 and (np.diff(shares[1:]) < 0).all()


def test_parts_can_be_asked_for():
    hands, driving = slice(92, 134), standing(num_points=134)
    driving[:, hands] = (150, 195, 0.5)
    found = driving.copy()
    found[:, 92:113, 0] += 30
    assert pck(found, driving).item() == 1
    assert pck(found, driving, points=hands).item() == 0.5
    assert akd(found, driving, points=hands).item() == pytest.approx(15)


# ---- orders of points ----


def numbered(num_points):
    points = np.zeros((1, num_points, 3))
    points[..., 0], points[..., 2] = np.arange(num_points), 0.5
    return points


def test_openposes_sets_begin_alike():
    for fewer, more in ((18, 134), (24, 92)):
        first, second = common_points(numbered(more), numbered(fewer))
        assert first.shape == second.shape == (1, fewer, 3) and (first == second).all()


def test_cocos_points_take_openposes_order():
    whole_body, _ = common_points(numbered(133), numbered(134))
    assert whole_body[0, 18:, 0].tolist() == list(range(17, 133))
    assert whole_body[0, :5, 0].tolist() == [0, 5.5, 6, 8, 10]  # nose, neck, right arm
    body, other = common_points(numbered(17), numbered(134))
    assert (body == whole_body[:, :18]).all() and other.shape == (1, 18, 3)
    assert common_points(numbered(25), numbered(134))[0][0, :, 0].tolist() == list(BODY_25)


def test_mediapipes_points_take_openposes_order():
    points = common_points(numbered(33), numbered(134))[0][0]
    assert points[[1, 2, 5, 18], 0].tolist() == [11.5, 12, 11, 31]
    assert (points[[19, 22]] == 0).all()  # small toes


def test_the_neck_needs_both_shoulders():
    points = numbered(17)
    points[0, 5, 2] = 0
    assert common_points(points, numbered(18))[0][0, NECK, 2] == 0


def test_unknown_orders_are_compared_only_with_themselves():
    first, second = common_points(numbered(21), numbered(21))
    second[0, 20, 0] += 42
    assert akd(first, second).item() == 2
    with pytest.raises(UserError, match="21 and 134 .* order of 21 is not known; write poses of 17, 18"):
        common_points(numbered(21), numbered(134))
    for metric in (pck, oks):
        with pytest.raises(UserError, match="order of 21 key points is not known"):
            metric(first, second)


def test_other_shapes_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="common_points"):
        pck(standing(), standing(num_points=134))
