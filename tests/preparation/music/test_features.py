"""Clicks at known times are found in the rows of the frames shown then, at even and uneven rates."""

import numpy as np
import pytest

from preparation import ConfigError
from preparation.music.features import check_music_features, compute_music_features, find_beats, mark_frames

pytest.importorskip("librosa", reason="pip install -r requirements-prepare.txt")

RATE = 44_100
CLICKS = np.arange(0.71, 7, 0.5)  # librosa places a beat at a sound's very end early


@pytest.fixture(scope="module")
def sound():
    track, generator = np.zeros(8 * RATE, np.float32), np.random.default_rng(0)
    for second in CLICKS:
        start = round(second * RATE)
        track[start : start + 400] = generator.uniform(-1, 1, 400) * np.exp(-np.arange(400) / 100)
    return track


EVEN = np.arange(192) / 24
UNEVEN = np.cumsum([0, *[(1 + k % 3) / 48 for k in range(190)]])


@pytest.mark.parametrize("frame_seconds", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_aist35_rows_are_at_the_frames(sound, frame_seconds):
    features = compute_music_features("aist35", sound, RATE, frame_seconds)
    assert features.shape == (len(frame_seconds), 35) and features.dtype == np.float32
    nearest = mark_frames(CLICKS, frame_seconds).astype(bool)
    half_frame = np.diff(frame_seconds).max() / 2
    for column in (33, 34):  # onset peak, beat
        found = frame_seconds[features[:, column] == 1]
        assert len(found) >= len(CLICKS) - 2
        distance = np.abs(found[:, None] - CLICKS).min(axis=1)
        assert distance.max() <= half_frame + 0.012  # a step of the analysis
    strength = features[:, 0]
    assert strength[nearest].min() > 3 * np.median(strength[~nearest])
    assert 0 <= features[:, 21:33].min() and features[:, 21:33].max() <= 1  # chroma


def test_beats_are_not_late(sound):
    """librosa alone is 6 to 15 ms late."""
    tempo, beats = find_beats(sound, RATE)
    errors = [beat - CLICKS[np.abs(CLICKS - beat).argmin()] for beat in beats]
    assert len(beats) >= len(CLICKS) - 2 and abs(np.mean(errors)) < 0.005
    assert tempo == pytest.approx(120, rel=0.05)


def test_beat_is_one_column_that_peaks_at_the_clicks(sound):
    features = compute_music_features("beat", sound, RATE, EVEN)
    assert features.shape == (192, 1)
    loudest = np.sort(features[:, 0].argsort()[-len(CLICKS) :])
    assert np.abs(EVEN[loudest] - CLICKS).max() < 1 / 24


def test_silence_has_no_beats():
    assert len(find_beats(np.zeros(3 * RATE, np.float32), RATE)[1]) == 0
    features = compute_music_features("aist35", np.zeros(3 * RATE, np.float32), RATE, EVEN[:48])
    assert not features[:, [0, 33, 34]].any()


def test_marks_lie_on_the_nearest_frame_or_on_none():
    marks = mark_frames(np.array([-0.5, 0.04, 0.26, 0.99]), np.arange(4) / 10)
    assert marks.tolist() == [1, 0, 0, 1]


def test_user_function(sound, marker_module):
    features = compute_music_features(f"{marker_module}:level", sound, RATE, EVEN)
    assert features.shape == (192, 2) and np.allclose(features[:, 1], EVEN)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aist36", "aist36: expected aist35, beat or your own"),
        ("nowhere.py:f", "no such file"),
        ("no_such_module_here:f", "no module no_such_module_here"),
        ("numpy:no_such_thing", "has no function or class no_such_thing"),
    ],
)
def test_unknown_features_are_named(name, message):
    with pytest.raises(ConfigError, match=message):
        check_music_features(name)


def test_wrong_shape_of_a_user_function_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import numpy as np\ndef one(sound, rate, seconds):\n    return np.zeros((3, 2))\n")
    with pytest.raises(ConfigError, match=r"returned float64 of shape \[3, 2\]; expected numbers \[5, D\]"):
        compute_music_features(f"{path}:one", np.zeros(100, np.float32), RATE, EVEN[:5])
