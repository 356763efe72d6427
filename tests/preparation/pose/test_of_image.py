"""The pose of the person in an image, or one line."""

import numpy as np
import pytest

from preparation.pose import of_image
from preparation.settings import Settings
from system.errors import UserError


@pytest.fixture
def estimate(monkeypatch, marker_estimator):
    monkeypatch.setattr(of_image, "Settings", lambda: Settings(pose_estimator=marker_estimator))
    return of_image.pose_of_image


def test_the_largest_person_of_an_image(estimate, draw):
    image = draw((60, 120), [(0.1, 0.2, 0.05), (0.5, 0.1, 0.2)])
    points = estimate(image, "people.png")
    assert points.shape == (134, 3) and points[0, :2] == pytest.approx([0.5, 0.2], abs=0.02)


def test_nobody_is_one_line(estimate):
    with pytest.raises(UserError, match=r"empty.png: no person is found in it; .*--reference_pose"):
        estimate(np.zeros((64, 64, 3), np.uint8), "empty.png")


def test_no_estimator_is_one_line(monkeypatch):
    monkeypatch.setattr(of_image, "Settings", lambda: Settings(pose_estimator="none.py:gone"))
    with pytest.raises(
        UserError, match="the pose of a.png: .*no such file.*; or give it with --reference_pose"
    ):
        of_image.pose_of_image(np.zeros((64, 64, 3), np.uint8), "a.png")
