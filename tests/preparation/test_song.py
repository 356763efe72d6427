"""A song's rows by the model's recipe: how many, at which times, and one line where they cannot be had."""

import numpy as np
import pytest

from preparation import song
from preparation.music import features
from system.errors import UserError


@pytest.fixture
def seen(monkeypatch):
    """A recipe of two features; what it was given: (sound, rate, frames' times)."""
    calls = []

    def two(sound, rate, frame_seconds):
        calls.append((sound, rate, frame_seconds))
        return np.column_stack([frame_seconds, np.ones(len(frame_seconds))])

    monkeypatch.setitem(features._REGISTRY, "two", two)
    monkeypatch.setattr(song, "check_music_features", lambda name: None)  # librosa need not be there
    return calls


def test_a_row_per_frame_of_the_whole_song(seen, write_clicks, tmp_path):
    path = write_clicks(tmp_path / "song.wav", [0.5, 1.0, 2.0], seconds=2.5)
    rows = song.song_features(path, 12, recipe="two", num_features=2)
    np.testing.assert_allclose(rows[:, 0], np.arange(30) / 12)
    sound, rate, _ = seen[0]
    assert len(sound) / rate == pytest.approx(2.5, abs=0.01)
    assert abs(np.argmax(np.abs(sound) > 0.1) / rate - 0.5) < 0.01


def test_a_videos_song_begins_with_its_first_frame(seen, write_raw, tmp_path):
    path = write_raw(tmp_path / "late.mp4", seconds=0.5 + np.arange(24) / 12, click_seconds=(0.75, 1.5))
    rows = song.song_features(path, 12, recipe="two", num_features=2)
    sound, rate, _ = seen[0]
    assert len(rows) == pytest.approx(24, abs=1)
    assert abs(np.argmax(np.abs(sound) > 0.1) / rate - 0.25) < 0.03


def test_an_unrecorded_recipe_is_told(write_clicks, tmp_path, seen, monkeypatch, capsys):
    monkeypatch.setitem(features._REGISTRY, song.USUAL_RECIPE, features._REGISTRY["two"])
    path = write_clicks(tmp_path / "song.wav", [0.5], seconds=1.5)
    song.song_features(path, 12, recipe=None, num_features=2)
    assert "does not say how its music features were made: aist35 is taken" in capsys.readouterr().out


WRONG = {
    "no file": ("none.wav", {}, "none.wav: no such sound file"),
    "text": ("text.mp3", {}, "text.mp3: its sound cannot be read"),
    "0.3 s": ("short.wav", {}, "lasts 0.30 s; give a song of at least one second"),
    "silence": ("silent.wav", {}, "its sound is silent"),
    "another number": ("song.wav", {"num_features": 35}, "two makes 2 features.* trained with 35; give"),
    "the demo's": ("song.wav", {"recipe": "demo35"}, "are demo35, which are not made of a sound: .*--music"),
    "a lost function": ("song.wav", {"recipe": "gone.py:mine"}, r"cannot be had here \(.*no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_song_that_makes_no_features_is_one_line(seen, write_clicks, tmp_path, case):
    name, changes, message = WRONG[case]
    (tmp_path / "text.mp3").write_text("no sound")
    for file, clicks, seconds in (
        ("song.wav", [0.5], 1.5),
        ("silent.wav", [], 1.5),
        ("short.wav", [0.1], 0.3),
    ):
        write_clicks(tmp_path / file, clicks, seconds=seconds)
    with pytest.raises(UserError, match=message):
        song.song_features(tmp_path / name, 12, **{"recipe": "two", "num_features": 2} | changes)
