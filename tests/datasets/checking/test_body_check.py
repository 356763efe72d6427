"""Is the person of the reference image built as the dancer? The demo's are; a child's legs are not."""

import json

import numpy as np
import pytest

from datasets.checking.body_check import compare_bodies, describe_unlike, reference_points
from demo.data import DemoScene

SQUARE = (128, 128)


@pytest.fixture(scope="module")
def dance():
    return DemoScene(1).key_points()


def with_legs(points, share):
    points = points.copy()
    for hip, *leg in ((8, 9, 10), (11, 12, 13)):
        points[leg, :2] = points[hip, :2] + share * (points[leg, :2] - points[hip, :2])
    return points


def test_each_frame_of_a_dance_is_of_its_dancer(dance):
    shares = [compare_bodies(dance, SQUARE, points, SQUARE) for points in dance]
    assert all(one.keys() == {"legs", "arms", "shoulders", "head"} for one in shares)
    assert {describe_unlike(one) for one in shares} == {""}


def test_another_build_is_named(dance):
    wide = (128, 256)  # the same picture with a margin at both sides
    points = with_legs(dance[0], 0.5) * [0.5, 1, 1] + [0.25, 0, 0]
    shares = compare_bodies(dance, SQUARE, points, wide)
    assert shares["legs"] == pytest.approx(0.5, abs=0.03)
    assert describe_unlike(shares) == f"legs {shares['legs']:g} times as long"


def test_nothing_is_said_of_whom_nothing_is_known(dance):
    for nobody in (np.zeros((134, 3)), np.ones((17, 3))):
        assert compare_bodies(dance, SQUARE, nobody, SQUARE) == {}
    half = dance[0].copy()
    half[[9, 10, 12, 13]] = 0
    assert compare_bodies(dance, SQUARE, half, SQUARE).keys() == {"arms", "shoulders", "head"}


def test_reference_is_a_frame_or_has_points_of_its_own(dance):
    points, size = reference_points({"reference_frame": 5}, dance, SQUARE, (64, 32))
    assert size == SQUARE and (points == dance[5]).all()
    stated = {"reference_frame": 5, "reference_pose": [[0.5, 0.25, 1]] * 18}
    points, size = reference_points(stated, dance, SQUARE, (64, 32))
    assert size == (64, 32) and points.shape == (18, 3)
    assert reference_points({"reference_frame": 999}, dance, SQUARE, SQUARE) is None
    assert reference_points({}, dance, SQUARE, SQUARE) is None


def test_report_tells_how_far_and_bad_metadata(data_root, check):
    path = data_root / "metadata" / "dance_001.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"reference_pose": [[0.5, 0.5]]}))
    (fault,) = check(data_root, num_workers=0).faults
    assert (fault.path, fault.severity) == (str(path), "warning")
    assert fault.problem == "reference_pose is not a list of [x, y, confidence]"
