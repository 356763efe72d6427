"""What a driving video gives: as preparation makes it of the same file, at the model's times."""

import struct

import numpy as np
import pytest

from datasets import VideoReader, read_music, read_pose_folder
from preparation.pose.estimators import make_pose_estimator
from preparation.prepare_video import prepare_video
from preparation.settings import Settings
from preparation.sources import list_sources
from sampling.driving_video import open_driving_video

from ..preparation.conftest import MARKER, draw_frame

CENTRE = 4  # of a marker's points
SETTINGS = Settings(pose_estimator=f"{MARKER}:find_markers", music_features=f"{MARKER}:level")


def poses(video, **settings):
    return video.poses(SETTINGS, lambda done, total: None, **settings)


def no_note(text):
    raise AssertionError(text)


def test_it_is_what_preparation_makes(tmp_path, write_raw, no_beats):
    path = write_raw(tmp_path / "raw" / "dance.mp4", click_seconds=[0.5, 1.25])
    (source,), _ = list_sources(tmp_path / "raw", None)
    prepare_video(source, SETTINGS, tmp_path / "data", make_pose_estimator(SETTINGS))
    video = open_driving_video(path, 0.0, None, 12.0, no_note)
    expected = read_pose_folder(tmp_path / "data" / "poses" / "dance", 134)
    np.testing.assert_allclose(poses(video), expected, atol=1e-5)  # files are rounded
    name, music = video.music(SETTINGS.music_features, 2)
    assert name == SETTINGS.music_features
    expected = read_music(tmp_path / "data" / "music_features" / "dance.npy", 2)
    np.testing.assert_array_equal(music.features, expected)


@pytest.mark.parametrize("first", [0.0, 0.5])
def test_poses_and_music_are_at_the_models_times(tmp_path, write_raw, no_beats, first):
    """Of a variable rate, and where the first frame comes late."""
    seconds = first + np.cumsum([0, *[(1 + k % 3) / 24 for k in range(23)]])
    places = 0.1 + 0.2 * (seconds - first)  # of the width, per second
    frames = [np.full((64, 200, 3), 60, np.uint8) for _ in seconds]
    for frame, place in zip(frames, places, strict=True):
        frame[20:40, round(200 * place) : round(200 * place) + 20] = (230, 20, 20)
    path = write_raw(tmp_path / "dance.mp4", frames=frames, seconds=seconds, click_seconds=[first + 1.0])
    video = open_driving_video(path, 0.5, 1.0, 10.0, no_note)
    found = poses(video)[:, CENTRE, 0]
    assert len(found) == 10
    np.testing.assert_allclose(found, 0.15 + 0.2 * (0.5 + np.arange(10) / 10), atol=0.005)
    _, music = video.music(SETTINGS.music_features, 2)
    assert np.flatnonzero(music.features[:, 0] > 0.1).tolist() == [5]  # at 1.0 s of the dance


def test_a_turned_video_is_seen_upright(tmp_path, write_raw):
    raw = write_raw(tmp_path / "dance.mp4", 4, size=(48, 96))
    content = bytearray(raw.read_bytes())
    a, b, c, d = (value << 16 for value in (0, 1, -1, 0))  # a quarter turn
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    raw.write_bytes(content)
    video = open_driving_video(raw, 0.0, None, 12.0, lambda note: None)
    frame = VideoReader(raw).read([0])[0].astype(int)
    rows, columns = np.nonzero((frame[..., 0] > 150) & (frame[..., 1] < 100))
    centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / frame.shape[1::-1]
    assert video.reader.size == (96, 48)
    np.testing.assert_allclose(poses(video)[0, CENTRE, :2], centre, atol=0.03)


def test_only_the_part_is_looked_at_and_a_change_is_of_its_own_frames(raw):
    seen, steps = [], []
    video = open_driving_video(raw, 1.0, 0.5, 12.0, no_note)

    def change(points, rate):
        seen.append((len(points), rate))
        return points

    video.poses(SETTINGS, lambda *step: steps.append(step), change)
    ((num_frames, rate),) = seen
    assert 6 <= num_frames <= 12 and rate == pytest.approx(12)
    assert steps[-1] == (2 * num_frames, 2 * num_frames)


def test_what_is_unusual_is_told(tmp_path, write_raw):
    frames = [draw_frame((96, 64), [(0.2, 0.3, 0.3)] if number < 12 else []) for number in range(24)]
    path, notes = write_raw(tmp_path / "dance.mp4", frames=frames), []
    poses(open_driving_video(path, 0.0, 3.0, 12.0, notes.append))
    assert "ends 2.00 s after --start_seconds" in notes[0]
    assert "the dancer is found in 12 of 24 frames only" in notes[1]
