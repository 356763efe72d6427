"""Truth and prediction paired by time: other rates, sizes and lengths, or refused with the reason."""

import numpy as np
import pytest

from datasets import DataError, write_video
from evaluation.clips import pairs
from evaluation.clips.pairs import pair_by_time, pair_with_video, paired
from evaluation.clips.truth import ClipSettings, TruthFolder

CHANNELS = {"music": 35, "pose": 134}


def grey_levels(num_frames: int, size=(64, 64)) -> np.ndarray:
    """Frames that tell their number: level 8 k."""
    levels = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 8
    return np.broadcast_to(levels, (num_frames, *size, 3))


def numbers(source) -> list[int]:
    return [round(float(frame.mean()) / 8) for frame in source()]


def grid(rate: float, count: int, start: float = 0.0) -> np.ndarray:
    return start + np.arange(count) / rate


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (grid(24, 5), grid(24, 5), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        (grid(24, 4), grid(24, 5), [(0, 0), (1, 1), (2, 2), (3, 3)]),  # a frame short
        (grid(24, 6), grid(24, 5), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        (grid(12, 3), grid(24, 5), [(0, 0), (1, 2), (2, 4)]),  # half the rate
        (grid(48, 9), grid(24, 5), [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4)]),  # twice the rate
        (grid(24, 3, start=7.5), grid(24, 3, start=0.5), [(0, 0), (1, 1), (2, 2)]),  # another clock
        (grid(24, 1), grid(24, 5), [(0, 0)]),
    ],
)
def test_frames_are_paired_by_time(prediction, truth, expected):
    assert list(zip(*map(list, pair_by_time(prediction, truth)), strict=True)) == expected


def test_a_slower_copy_drifts_from_the_truth_as_its_clock_does():
    own, other = pair_by_time(grid(24, 240) * 1.04, grid(24, 240))
    assert other[-1] == pytest.approx(1.04 * own[-1], abs=1) and own[-1] < 239


def test_a_variable_rate_is_paired_by_its_stamps():
    own, other = pair_by_time(np.array([0, 0.1, 0.5, 0.6]), grid(10, 7))
    assert own.tolist() == [0, 1, 2, 3] and other.tolist() == [0, 1, 5, 6]


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_data):
    root = write_data(tmp_path_factory.mktemp("data"), num_videos=2)
    write_video(root / "videos" / "dance_001.mp4", grey_levels(12), 8)
    return root


@pytest.fixture
def folder(data):
    return TruthFolder(data, CHANNELS, ClipSettings())


def test_prediction_of_another_rate_and_size(folder, tmp_path):
    path = tmp_path / "dance_001.mp4"
    write_video(path, grey_levels(12, (32, 32))[::2], 4)
    pair = pair_with_video(folder.clip("dance_001"), path)
    assert pair.size == (64, 64) and pair.frame_rate == pytest.approx(4)
    assert numbers(pair.prediction) == numbers(pair.truth) == [0, 2, 4, 6, 8, 10]
    assert pair.clip.key_points.shape == (6, 134, 3)
    assert "resized to the truth's 64x64" in pair.notes[0] and "6 pairs by time" in pair.notes[1]


def test_poses_that_drive_the_videos_take_the_place_of_the_datas(data, folder, tmp_path):
    for rows, name in ((24, "dance_001.npy"), (11, "dance_002.npy")):
        np.save(tmp_path / name, np.full((rows, 134, 3), (0.25, 0.5, 1), np.float32))
    (tmp_path / "meta.json").write_text('{"fps": 16}')  # by time: twice the video's rate
    (tmp_path / "dance_001.mp4").write_bytes(b"the skeleton")
    driven = TruthFolder(data, CHANNELS, ClipSettings(num_frames=5), tmp_path)
    clip = driven.clip("dance_001")
    assert clip.key_points.shape == (5, 134, 3) and (clip.key_points == (16, 32, 1)).all()
    assert tmp_path / "dance_001.npy" in driven.files("dance_001")
    assert "dance_002" in driven.clip("dance_002").lacks["pose"]  # ends early
    own = driven.with_own_pose(clip)
    np.testing.assert_array_equal(own.key_points, folder.clip("dance_001").key_points[:5])
    assert folder.with_own_pose(own) is own
    (tmp_path / "dance_001.npy").unlink()
    assert "no pose for video 'dance_001'" in driven.clip("dance_001").lacks["pose"]


def test_prediction_of_another_shape_is_refused_unless_the_truth_is_cut(data, folder, tmp_path):
    path = tmp_path / "dance_001.mp4"
    write_video(path, grey_levels(12, (64, 32)), 8)
    with pytest.raises(DataError, match="32x64, but the truth is 64x64.*--resolution 64 32"):
        pair_with_video(folder.clip("dance_001"), path)
    cut = TruthFolder(data, CHANNELS, ClipSettings(resolution=(64, 32), fit="crop"))
    pair = pair_with_video(cut.clip("dance_001"), path)
    chunk = next(pair.chunks())
    assert chunk.truth.shape == chunk.prediction.shape == (12, 64, 32, 3)


def test_part_of_a_video(data):
    settings = ClipSettings(start_frame=3, num_frames=4, frame_stride=2)
    truth = TruthFolder(data, CHANNELS, settings).clip("dance_001")
    assert truth.frames.tolist() == [3, 5, 7, 9] and numbers(truth.source()) == [3, 5, 7, 9]
    assert len(truth.guidance["music"]) == 4
    with pytest.raises(DataError, match="12 frames, 9 frames asked for from frame 4 on"):
        TruthFolder(data, {}, ClipSettings(start_frame=4, num_frames=9)).clip("dance_001")


def test_chunks_overlap_by_a_frame(folder, monkeypatch):
    monkeypatch.setattr(pairs, "MOST_CHUNK_FRAMES", 5)
    truth = folder.clip("dance_001")
    chunks = list(paired(truth, truth.source()).chunks())
    assert [len(chunk.truth) for chunk in chunks] == [5, 6, 3]
    assert [(chunk.num_old, chunk.first) for chunk in chunks] == [(0, 0), (1, 5), (1, 10)]
    np.testing.assert_array_equal(chunks[0].prediction[-1], chunks[1].prediction[0])
    points = np.concatenate([chunk.key_points[chunk.num_old :] for chunk in chunks])
    np.testing.assert_array_equal(points, truth.key_points)


def test_key_points_are_in_pixels_of_the_fitted_frame(data):
    whole = TruthFolder(data, CHANNELS, ClipSettings()).clip("dance_002").key_points
    half = TruthFolder(data, CHANNELS, ClipSettings(resolution=(32, 32))).clip("dance_002").key_points
    np.testing.assert_allclose(half[..., :2] * 2, whole[..., :2], atol=1e-4)
    assert 1 < whole[..., 0].max() < 64


def test_what_is_broken_beside_the_video_is_told(tmp_path, write_data):
    root = write_data(tmp_path, num_videos=2)
    np.save(root / "music_features" / "dance_001" / "frame_003.npy", np.full(35, np.nan, np.float32))
    (root / "reference_images" / "dance_001.png").unlink()
    truth = TruthFolder(root, {**CHANNELS, "depth": 1}, ClipSettings()).clip("dance_001")
    assert list(truth.guidance) == ["pose"]
    assert "frame_003.npy" in truth.lacks["music"] and "NaN" in truth.lacks["music"]
    assert "depth" in truth.lacks["depth"] and "reference image" in truth.lacks["reference_image"]


def test_a_clip_depends_on_the_rate_that_is_stated_beside_its_guidance(tmp_path):
    (tmp_path / "music_features").mkdir()
    (tmp_path / "videos").mkdir()
    for path in ("music_features/a.npy", "music_features/meta.json", "videos/a.mp4"):
        (tmp_path / path).touch()
    files = TruthFolder(tmp_path, {"music": 35}, ClipSettings()).files("a")
    assert {"a.mp4", "a.npy", "meta.json"} <= {path.name for path in files}
