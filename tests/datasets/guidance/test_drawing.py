"""Skeletons and maps: the right place, side, colour and range."""

import numpy as np
import pytest
import torch

from datasets.guidance.drawing import draw_features, draw_map, draw_pose
from datasets.guidance.openpose import BODY_LIMBS


def _pose(points: dict[int, tuple[float, float]], num_keypoints: int = 134) -> np.ndarray:
    keypoints = np.zeros((num_keypoints, 3))
    for index, (x, y) in points.items():
        keypoints[index] = (x, y, 1)
    return keypoints


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (512, 512)])
def test_a_limb_is_drawn_between_its_joints_only(size):
    height, width = size
    picture = draw_pose(_pose({2: (0.25, 0.5), 3: (0.75, 0.5)}), size)
    assert picture.shape == (height, width, 3) and picture.dtype == np.uint8
    assert picture[height // 2, width // 2].max() > 120
    rows, columns = np.nonzero(picture.max(axis=2))
    assert rows.min() > 0.4 * height and rows.max() < 0.6 * height
    assert columns.min() > 0.2 * width and columns.max() < 0.8 * width


def test_absent_points_are_not_drawn():
    keypoints = _pose({2: (0.25, 0.5), 3: (0.75, 0.5)})
    keypoints[3, 2] = 0
    picture = draw_pose(keypoints, (128, 128))
    assert picture[64, 32].max() > 0  # the joint that is there
    assert picture[:, 48:].max() == 0  # neither the limb nor the absent joint
    assert draw_pose(np.zeros((134, 3)), (128, 128)).max() == 0


def test_left_and_right_hands_have_their_own_colours_and_places():
    left = draw_pose(_pose({92: (0.8, 0.5), 93: (0.8, 0.6)}), (128, 128))
    right = draw_pose(_pose({113: (0.2, 0.5), 114: (0.2, 0.6)}), (128, 128))
    assert left[:, :64].max() == 0 and right[:, 64:].max() == 0
    assert left[..., 2].max() > left[..., 0].max()  # blue
    assert right[..., 0].max() > right[..., 2].max()  # orange


@pytest.mark.parametrize("num_keypoints", [18, 24, 92, 134, 17, 33])
def test_any_number_of_key_points_is_drawn(num_keypoints):
    keypoints = (
        torch.rand(num_keypoints, 3, generator=torch.Generator().manual_seed(0)) * 3 - 1
    )  # far outside too
    keypoints[:, 2] = 1
    assert draw_pose(keypoints, (64, 64)).max() > 0


def test_every_body_point_has_a_limb():
    assert {point for limb in BODY_LIMBS for point in limb} == set(range(18))


def test_a_skeleton_is_drawn_over_a_picture():
    background = np.full((48, 32, 3), 90, np.uint8)
    picture = draw_pose(_pose({2: (0.25, 0.5), 3: (0.75, 0.5)}), (96, 64), background)
    assert picture.shape == (96, 64, 3)
    assert np.all(picture[:30] == 90) and not np.all(picture[48] == 90)


def test_maps_keep_their_values_or_are_stretched():
    grey = draw_map(torch.full((1, 8, 8), 0.5), (16, 16))
    assert np.all(grey == 128)
    normals = draw_map(torch.linspace(-1, 1, 192).reshape(3, 8, 8), (16, 16))
    assert normals.min() == 0 and normals.max() == 255


def test_constant_music_is_dark_and_does_not_fail():
    image = draw_features(torch.full((6, 3), 7.0), 0, (64, 96))
    assert image[40, 60].max() < 32
