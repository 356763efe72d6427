"""What is drawn for people to look at: the right place, side, size and timing."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.panels import draw_guidance, frames_to_uint8, gif_bytes, make_panel


@pytest.mark.parametrize("shape", [(10, 1), (10, 35), (3, 4800), (300, 35), (8, 12, 4, 4)])
def test_the_music_cursor_follows_the_frame(shape):
    features = np.random.default_rng(0).normal(size=shape)
    pictures = draw_guidance(features, (64, 96))
    assert pictures.shape == (shape[0], 64, 96, 3)
    cursors = [np.flatnonzero((picture[32:] == 255).all(axis=(0, 2))).mean() for picture in pictures]
    assert np.all(np.diff(cursors) >= 0) and cursors[0] < 96 / 2 < cursors[-1]


def test_maps_of_a_clip_are_drawn_frame_by_frame():
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


def test_gif_keeps_frames_and_the_total_time():
    frames = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3), dtype=np.uint8)
    picture = Image.open(io.BytesIO(gif_bytes(frames, frame_rate=24)))
    assert picture.n_frames == 24
    durations = []
    for index in range(24):
        picture.seek(index)
        durations.append(picture.info["duration"])
    assert sum(durations) == 1000
    assert gif_bytes(frames[:1], 24).startswith(b"GIF8")
