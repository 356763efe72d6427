import numpy as np
import pytest

from models.music_to_pose.music import GROUPS_OF_RECIPES, MusicFeatures, beat_columns, beat_frames


def test_every_column_of_a_known_layout_is_in_one_group():
    for groups in GROUPS_OF_RECIPES.values():
        assert sorted(sum(groups.values(), [])) == list(range(35))


def test_beat_phase_joins_rhythm():
    rows = np.zeros((20, 35), np.float32)
    rows[[4, 14], 34] = 1
    features = MusicFeatures(35, GROUPS_OF_RECIPES["demo35"], 34, frame_rate=10)
    heard = features(rows)
    assert heard.shape == (20, 43) == (20, features.num_columns)
    assert features.groups["rhythm"][-8:] == list(range(35, 43))
    assert 43 not in GROUPS_OF_RECIPES["demo35"]["rhythm"]  # the table is nobody's to change
    np.testing.assert_allclose(heard[9, 35:37], [0, -1], atol=1e-6)  # half a beat after the first
    np.testing.assert_allclose(heard[[4, 14], 41:], 1)


def test_without_beats_nothing_is_appended():
    rows = np.ones((5, 3))
    features = MusicFeatures(3)
    assert features.groups == {"all": [0, 1, 2]}
    assert features(rows).shape == (5, 3)


def test_phases_run_on_beyond_the_beats():
    columns = beat_columns(np.array([0.0, 0.5, 1.0, 2.0, 3.5]), np.array([1.0, 2.0]))
    phases = np.arctan2(columns[:, 2], columns[:, 3]) / np.pi  # in two beats
    np.testing.assert_allclose(np.mod(phases, 2), [1, 1.5, 0, 1, 0.5], atol=1e-6)
    assert not beat_columns(np.arange(4.0), np.array([1.0])).any()


@pytest.mark.parametrize(
    ("beat", "expected"), [([0, 1, 0, 0, 1], [1, 4]), ([0, 0.6, 0.9, 0, 0], [1.6]), ([0, 0, 0], [])]
)
def test_a_run_is_one_beat(beat, expected):
    np.testing.assert_allclose(beat_frames(np.array(beat)), expected)
