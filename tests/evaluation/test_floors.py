"""Floors are clips whose prediction is known."""

import numpy as np
import pytest

from evaluation import floors
from evaluation.clips.pairs import paired
from evaluation.clips.truth import ClipSettings, TruthFolder
from evaluation.measuring import Measured


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_data):
    root = write_data(tmp_path_factory.mktemp("data"), num_videos=2)
    return TruthFolder(root, {"pose": 134}, ClipSettings(num_frames=12))


@pytest.fixture(scope="module")
def pair(folder):
    truth = folder.clip("dance_001")
    return paired(truth, truth.source())


def frames_of(pair) -> np.ndarray:
    return np.stack(list(pair.prediction()))


def test_the_reference_is_repeated(pair):
    frames = frames_of(floors.reference_repeated(pair, "auto"))
    assert frames.shape == (12, 64, 64, 3) and (frames == frames[0]).all()
    np.testing.assert_array_equal(frames[0], pair.clip.reference)


def test_another_video_begins_again_where_it_is_shorter(folder, pair, monkeypatch):
    monkeypatch.setattr(folder, "settings", ClipSettings(num_frames=5))
    other = folder.clip("dance_002")
    frames = frames_of(floors.another_video(pair, other, "auto"))
    assert len(frames) == 12
    np.testing.assert_array_equal(frames[:5], np.stack(list(other.source()())))
    np.testing.assert_array_equal(frames[5:10], frames[:5])


def test_the_round_trip_is_given_the_truth_in_parts(pair):
    lengths = []

    def round_trip(frames):
        lengths.append(len(frames))
        return 255 - frames

    np.testing.assert_array_equal(frames_of(floors.vae_round_trip(pair, round_trip)), 255 - frames_of(pair))
    assert lengths == [8, 4]


def test_the_pose_of_another_clip_fits_worse(folder, pair):
    points = pair.clip.key_points
    measured = Measured(values={"akd": 0.0}, points=points)
    assert floors.pose_of_another(measured, folder.clip("dance_002"), ["akd", "pck"])["akd"] > 1
    assert floors.pose_of_another(Measured(), folder.clip("dance_002"), ["akd"]) == {}


def test_the_truth_against_itself_is_asked_what_tells_something():
    assert floors.wanted_of("truth_itself", ["psnr", "pck"]) == ["pck"]
    assert floors.wanted_of("another_video", ["psnr", "pck"]) == ["psnr", "pck"]
