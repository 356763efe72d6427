"""What is drawn for people to look at: the right place, side, size and timing."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.guidance_drawing import (
    BODY_LIMBS,
    draw_guidance,
    draw_map,
    draw_music,
    draw_pose,
    frames_to_uint8,
    gif_bytes,
    make_panel,
    write_gif,
)


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


@pytest.mark.parametrize("shape", [(10, 1), (10, 35), (3, 4800), (300, 35), (8, 12, 4, 4)])
def test_the_music_cursor_follows_the_frame(shape):
    features = np.random.default_rng(0).normal(size=shape)
    pictures = draw_guidance(features, (64, 96))
    assert pictures.shape == (shape[0], 64, 96, 3)
    cursors = [np.flatnonzero((picture[32:] == 255).all(axis=(0, 2))).mean() for picture in pictures]
    assert np.all(np.diff(cursors) >= 0) and cursors[0] < 96 / 2 < cursors[-1]


def test_constant_music_is_dark_and_does_not_fail():
    picture = draw_music(torch.full((6, 3), 7.0), 0, (64, 96))
    assert picture[40, 60].max() < 32


def test_maps_keep_their_values_or_are_stretched():
    grey = draw_map(torch.full((1, 8, 8), 0.5), (16, 16))
    assert np.all(grey == 128)
    normals = draw_map(torch.linspace(-1, 1, 192).reshape(3, 8, 8), (16, 16))
    assert normals.min() == 0 and normals.max() == 255
    assert draw_guidance(torch.rand(2, 3, 8, 8), (16, 16)).shape == (2, 16, 16, 3)


def test_frames_to_uint8_covers_the_range():
    frames = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    assert frames_to_uint8(frames).tolist() == [[[[0, 128, 255]]]]


def test_panel_repeats_stills_and_has_even_sides():
    still = np.full((33, 20, 3), 200, np.uint8)
    clip = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(33, 1).repeat(21, 2).repeat(3, 3)
    panel = make_panel([still, clip])
    assert panel.shape == (4, 34, 44, 3)
    assert np.all(panel[:, :33, :20] == 200)
    assert panel[:, 5, 30, 0].tolist() == [0, 1, 2, 3]
    with_captions = make_panel([still, clip], ["reference", "prediction"])
    assert with_captions.shape[1] > panel.shape[1] and with_captions.shape[1] % 2 == 0
    with pytest.raises(ValueError, match="one number of frames"):
        make_panel([clip, clip[:2]])


def test_gif_keeps_frames_and_the_total_time(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3), dtype=np.uint8)
    write_gif(tmp_path / "clip.gif", frames, frame_rate=24)
    picture = Image.open(io.BytesIO((tmp_path / "clip.gif").read_bytes()))
    assert picture.n_frames == 24
    durations = []
    for index in range(24):
        picture.seek(index)
        durations.append(picture.info["duration"])
    assert sum(durations) == 1000
    assert gif_bytes(frames[:1], 24).startswith(b"GIF8")
