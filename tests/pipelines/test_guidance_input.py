"""Guidance files to a clip: the right rows for every frame time, one geometric transform, faults named."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import DataError, GuidanceDataset
from datasets.guidance.tracks import open_track
from pipelines.guidance_input import Framing, Timeline, count_frames, read_conditions

FRAMING = Framing((64, 64), None, (64, 64), "crop")


def write_music(path, num_rows: int, num_features: int = 2, fps: float | None = None):
    """Rows whose first feature is their number; the track of it."""
    features = np.zeros((num_rows, num_features), np.float32)
    features[:, 0] = np.arange(num_rows)
    np.save(path, features)
    return open_track("music", path, fps=fps)


def write_poses(path, points: list, **facts):
    """One file per frame, all with the same points; the track of it."""
    path.mkdir()
    for frame in range(8):
        text = json.dumps({"keypoints": points, "frame_id": frame} | facts)
        (path / f"frame_{frame:03d}.json").write_text(text)
    return open_track("pose", path)


@pytest.mark.parametrize("start_frame", [0, 3])
def test_the_conditions_of_a_data_folder_are_those_of_training(tiny_data, start_frame):
    dataset = GuidanceDataset(
        tiny_data, ["music", "pose"], [35, 134], resolution=(64, 32), sequence_length=4, frame_stride=2
    )
    expected = dataset.read_clip(1, start_frame)["guidance"]
    name = dataset.sample_ids[1]
    tracks = [
        open_track("music", tiny_data / "music_features" / name),
        open_track("pose", tiny_data / "poses" / name),
    ]
    conditions, _ = read_conditions(
        tracks,
        {"music": 35, "pose": 134},
        Timeline(8, start_frame, 2, 4),
        replace(FRAMING, output_size=(64, 32), fit="auto"),
    )
    for kind in ("music", "pose"):
        assert torch.equal(conditions[kind], expected[kind])


@pytest.mark.parametrize("music_rate", [10.0, 60.0, 86.1328125])
def test_music_rows_are_the_nearest_in_time(tmp_path, music_rate):
    track = write_music(tmp_path / "song.npy", int(4 * music_rate), fps=music_rate)
    timeline = Timeline(frame_rate=24, start_frame=12, frame_stride=3)
    num_frames = count_frames([track], timeline)
    assert num_frames == 28  # from 0.5 s to 4 s at 8 a second
    conditions, _ = read_conditions([track], {"music": 2}, timeline, FRAMING)
    seconds = 0.5 + np.arange(num_frames) / 8
    nearest = conditions["music"][:, 0].numpy() / music_rate
    assert np.abs(nearest - seconds).max() <= 0.5 / music_rate + 1e-6 or nearest[-1] == 4 - 1 / music_rate


def test_a_timeline_knows_its_times():
    timeline = Timeline(frame_rate=30, start_frame=45, frame_stride=2)
    assert timeline.start_seconds == 1.5 and timeline.clip_frame_rate == 15


def test_lengths_must_agree_unless_a_number_is_asked_for(tmp_path):
    poses = write_poses(tmp_path / "poses", [[0.5, 0.5, 1]])  # 8 frames
    music = write_music(tmp_path / "song.npy", 6)
    with pytest.raises(DataError, match="music gives 6 frames, pose gives 8; --num_frames 6"):
        count_frames([poses, music], Timeline(8))
    assert count_frames([poses, music], Timeline(8, num_frames=6)) == 6
    with pytest.raises(DataError, match="6 rows of music give 6 frames, 7 asked for"):
        count_frames([poses, music], Timeline(8, num_frames=7))
    with pytest.raises(DataError, match="8 rows of pose give 0 frames, 1 asked for from frame 9"):
        count_frames([poses], Timeline(8, start_frame=9))


def test_music_of_another_rate_may_end_a_little_sooner_or_later(tmp_path):
    poses = write_poses(tmp_path / "poses", [[0.5, 0.5, 1]])  # 1 s
    for num_rows, num_frames in ((100, 8), (90, 8), (80, 7), (120, 8)):
        track = write_music(tmp_path / f"{num_rows}.npy", num_rows, fps=100)
        assert count_frames([poses, track], Timeline(8)) == num_frames
    song = write_music(tmp_path / "song.npy", 18000, fps=100)
    with pytest.raises(DataError, match="pose gives 8 frames, music gives 1440"):
        count_frames([poses, song], Timeline(8))


def test_pixel_poses_need_the_size_of_their_video(tmp_path):
    points = [[160, 90, 1], [480, 270, 1]]
    track = write_poses(tmp_path / "poses", points)
    timeline = Timeline(8)
    with pytest.raises(DataError, match="--pose_size"):
        read_conditions([track], {"pose": 2}, timeline, FRAMING)
    framing = replace(FRAMING, output_size=(72, 128), source_size=(360, 640))
    conditions, is_assumed = read_conditions([track], {"pose": 2}, timeline, framing)
    assert torch.allclose(conditions["pose"][0], torch.tensor([[0.25, 0.25, 1], [0.75, 0.75, 1]]))
    assert not is_assumed
    for place, keys in enumerate((("width", "height"), ("canvas_width", "canvas_height"))):
        track = write_poses(tmp_path / f"told_{place}", points, **dict(zip(keys, (640, 360), strict=True)))
        told, is_assumed = read_conditions([track], {"pose": 2}, timeline, replace(framing, source_size=None))
        assert torch.equal(told["pose"], conditions["pose"]) and not is_assumed


def test_another_shape_is_cropped_about_the_person_or_padded(tmp_path):
    track = write_poses(tmp_path / "poses", [[0.7, 0.4, 1], [0.9, 0.6, 1]])  # on the right of a wide frame
    framing = replace(FRAMING, source_size=(100, 300))
    cropped, _ = read_conditions([track], {"pose": 2}, Timeline(8), framing)
    assert cropped["pose"][..., 2].all()
    width = cropped["pose"][0, 1, 0] - cropped["pose"][0, 0, 0]
    assert abs(width - 0.2 * 3) < 0.02  # a third of the frame is left
    padded, _ = read_conditions([track], {"pose": 2}, Timeline(8), replace(framing, fit="pad"))
    assert torch.allclose(padded["pose"][0, :, 0], torch.tensor([0.7, 0.9]), atol=0.01)
    assert abs(padded["pose"][0, 1, 1] - padded["pose"][0, 0, 1] - 0.2 / 3) < 0.01


def test_maps_are_read_and_tell_their_size(tmp_path):
    (tmp_path / "depth").mkdir()
    for frame in range(8):
        picture = np.full((30, 60), 10 * frame, np.uint8)
        Image.fromarray(picture).save(tmp_path / "depth" / f"frame_{frame}.png")
    depth = open_track("depth", tmp_path / "depth")
    poses = write_poses(tmp_path / "poses", [[0.5, 0.5, 1]])
    conditions, is_assumed = read_conditions([poses, depth], {"depth": 1, "pose": 1}, Timeline(8), FRAMING)
    assert conditions["depth"].shape == (8, 1, 64, 64) and not is_assumed
    assert torch.allclose(conditions["depth"][3], torch.tensor(30 / 255), atol=1e-3)
    _, is_assumed = read_conditions([poses], {"pose": 1}, Timeline(8), FRAMING)
    assert is_assumed


def test_maps_of_a_long_clip_are_read_part_by_part(tmp_path):
    (tmp_path / "depth").mkdir()
    generator = np.random.default_rng(0)
    for frame in range(6):
        picture = generator.integers(0, 255, (30, 60), np.uint8)
        Image.fromarray(picture).save(tmp_path / "depth" / f"frame_{frame}.png")
    tracks = [write_music(tmp_path / "song.npy", 6), open_track("depth", tmp_path / "depth")]
    channels, timeline = {"depth": 1, "music": 2}, Timeline(8, start_frame=1)
    whole, _ = read_conditions(tracks, channels, timeline, FRAMING, most_bytes=5 * 30 * 60 * 4)
    parts, _ = read_conditions(tracks, channels, timeline, FRAMING, most_bytes=5 * 30 * 60 * 4 - 1)
    assert isinstance(whole["depth"], torch.Tensor) and isinstance(parts["music"], torch.Tensor)
    assert parts["depth"].shape == tuple(whole["depth"].shape) == (5, 1, 64, 64)
    for start, stop in ((0, 5), (1, 3), (4, 5)):
        assert torch.equal(parts["depth"][start:stop], whole["depth"][start:stop])


def test_wrong_numbers_of_channels_name_the_trained_ones(tmp_path):
    track = write_poses(tmp_path / "poses", [[0.5, 0.5, 1]])
    with pytest.raises(DataError, match="1 key points, expected 134; the model was trained with 134 of pose"):
        read_conditions([track], {"pose": 134}, Timeline(8), FRAMING)
    music = write_music(tmp_path / "song.npy", 8)
    with pytest.raises(DataError, match=r"expected \(35,\).*the model was trained with 35 of music"):
        read_conditions([music], {"music": 35}, Timeline(8), FRAMING)
