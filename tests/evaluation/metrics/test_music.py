"""Dancers who are on the beat, off it, or dance to nothing, at the frame rates that people have."""

import numpy as np
import pytest

from evaluation.metrics.music import (
    _velocities,
    beat_alignment_gain,
    beat_coverage,
    motion_beats,
    music_beats,
)
from system.errors import UserError

RATES = (10, 15, 24, 30, 60)
DURATION, NUM_DANCERS = 12.0, 12


def song(seed):
    """Return the beats of a song of 90 to 140 a minute."""
    generator = np.random.default_rng(seed)
    period = 60 / generator.uniform(90, 140)
    return np.arange(generator.uniform(0, period), DURATION, period)


def dancer(beats, frame_rate, seed):
    """Return key points [F, 18, 3] of somebody who rests for a moment in a new posture on each beat."""
    times = np.arange(round(DURATION * frame_rate)) / frame_rate
    period = np.diff(beats).mean()
    beats = np.concatenate([[beats[0] - period], beats, [beats[-1] + period]])
    postures = np.random.default_rng(seed).uniform(0, 200, (len(beats), 36))
    after = np.clip(np.searchsorted(beats, times), 1, len(beats) - 1)
    share = (times - beats[after - 1]) / (beats[after] - beats[after - 1])
    share = ((1 - np.cos(np.pi * np.clip(share, 0, 1))) / 2)[:, None]
    places = (1 - share) * postures[after - 1] + share * postures[after]
    return with_confidence(places)


def with_confidence(places):
    places = places.reshape(len(places), 18, 2)
    return np.concatenate([places, np.ones_like(places[..., :1])], axis=-1)


def wanderer(frame_rate, seed):
    """Return key points of somebody who moves smoothly and to no beat: sums of slow waves."""
    generator = np.random.default_rng(seed)
    times = np.arange(round(DURATION * frame_rate))[:, None, None] / frame_rate
    waves = generator.uniform(0.2, 2, (12, 36)), generator.uniform(0, 2 * np.pi, (12, 36))
    return with_confidence(50 * np.sin(2 * np.pi * waves[0] * times + waves[1]).sum(axis=1))


def gains(frame_rate, dance, late=0.0):
    """Return the gain of each dancer, with music that is late by a share of its beat."""
    found = []
    for seed in range(NUM_DANCERS):
        beats = song(seed)
        motion = motion_beats(dance(beats, frame_rate, seed), frame_rate)
        heard = beats + late * np.diff(beats).mean()
        found.append(beat_alignment_gain(motion, heard, DURATION, num_shifts=50).gain)
    return np.array(found)


def interval(values):
    error = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - error, values.mean() + error


@pytest.mark.parametrize("frame_rate", RATES)
def test_on_the_beat_there_is_a_gain_and_half_a_beat_off_a_loss(frame_rate):
    assert gains(frame_rate, dancer).min() > 0.5
    assert interval(gains(frame_rate, dancer, late=0.5))[1] < 0


@pytest.mark.parametrize("frame_rate", RATES)
def test_who_dances_to_nothing_gains_nothing(frame_rate):
    low, high = interval(gains(frame_rate, lambda beats, rate, seed: wanderer(rate, 100 + seed)))
    assert low <= 0 and high < 0.1


def test_the_beat_that_features_mark_by_frame_is_enough_at_10_a_second():
    beats = song(0)
    frames = np.arange(round(DURATION * 10)) / 10
    features = np.zeros((len(frames), 35))
    features[np.abs(frames[:, None] - beats).argmin(axis=0), 34] = 1
    motion = motion_beats(dancer(beats, 10, 0), 10)
    assert beat_alignment_gain(motion, music_beats(features, frames), DURATION).gain > 0.45


def test_the_score_by_hand():
    motion, music = np.array([1.0, 2.0, 3.05]), np.array([1.0, 2.1, 3.0])
    found = beat_alignment_gain(motion, music, 4.0)
    assert found.score == pytest.approx((1 + np.exp(-2) + np.exp(-0.5)) / 3)
    assert found.gain == found.score - found.shifted_mean and 0 < found.share_beaten <= 1
    assert found == beat_alignment_gain(motion, music[::-1], 4.0)  # the seed is fixed, the order free
    # A motion beat far from its neighbours is worth sigma sqrt(2 pi) of the clip's seconds, by chance.
    assert found.shifted_mean == pytest.approx(3 * 0.05 * np.sqrt(2 * np.pi) / 4, abs=0.02)
    with pytest.raises(ValueError, match="at least 50"):
        beat_alignment_gain(motion, music, 4.0, num_shifts=49)


def test_coverage_counts_movements_per_beat_within_the_clip():
    assert beat_coverage(np.array([1, 2, 3, 9.0]), np.array([0.5, 1.5, 11]), 5.0) == 1.5


def test_a_still_video_has_no_beats_and_no_gain():
    still = np.broadcast_to(with_confidence(np.full((1, 36), 7.0)), (60, 18, 3))
    found = motion_beats(still + np.arange(18)[:, None], 30)
    assert len(found) == 0
    assert beat_alignment_gain(found, np.array([0.5, 1.0]), 2.0) == (0, 0, 0, 0)
    assert beat_coverage(found, np.array([0.5, 1.0]), 2.0) == 0


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_the_shortest_clips_have_no_beats(num_frames):
    assert len(motion_beats(wanderer(30, 0)[:num_frames], 30)) == 0


# ---- absent points ----


def test_a_point_that_comes_and_goes_makes_no_beat():
    points = dancer(song(1), 30, 1)
    expected = motion_beats(points, 30)
    hidden = points.copy()
    hidden[60:150, 4] = 0  # a hand, for three seconds
    hidden[np.arange(0, 360, 9), 7] = np.nan  # and the other one now and then
    hidden[:, 14:] = 0  # eyes and ears do not count
    found = motion_beats(hidden, 30)
    assert len(found) == len(expected) and np.abs(found - expected).max() < 0.04


def test_there_is_no_beat_where_the_dancer_is_not_seen():
    points = dancer(song(1), 30, 1)
    points[90:210] = 0
    found = motion_beats(points, 30)
    assert len(found) and not ((found > 3) & (found < 7)).any()


def test_nobody_in_view_is_told():
    with pytest.raises(UserError, match="no body point is seen in half of the 360 frames"):
        motion_beats(0 * dancer(song(1), 30, 1), 30)
    with pytest.raises(UserError, match="half of the 0 frames"):
        motion_beats(np.zeros((0, 18, 3)), 30)


# ---- splines ----


def test_splines_are_scipys():
    interpolate = pytest.importorskip("scipy.interpolate")
    places = np.random.default_rng(0).standard_normal((7, 2, 2))
    seconds = np.arange(37) / 60
    spline = interpolate.CubicSpline(np.arange(7) / 10, places, bc_type="natural")
    np.testing.assert_allclose(_velocities(places, 10, seconds), spline(seconds, 1), atol=1e-10)


# ---- where the music's beats are from ----

FEATURES = np.zeros((4, 35))
FEATURES[[1, 3], -1] = 1
SECONDS = np.arange(4) / 2


def test_the_best_of_what_there_is_tells_the_beats():
    listen = lambda: np.array([0.75, 0.25])  # noqa: E731
    stated = {"beat_seconds": [0.52, 1.49]}
    assert music_beats(FEATURES, SECONDS, metadata=stated, listen=listen).tolist() == [0.52, 1.49]
    assert music_beats(FEATURES, SECONDS, listen=listen).tolist() == [0.5, 1.5]
    recorded = {"music_features": {"name": "aist35", "channels": 35}}
    assert music_beats(FEATURES, SECONDS, metadata=recorded).tolist() == [0.5, 1.5]
    own = {"music_features": {"name": "my_music:features", "channels": 35}}
    assert music_beats(FEATURES, SECONDS, metadata=own, listen=listen).tolist() == [0.25, 0.75]
    assert music_beats(FEATURES[:, :29], SECONDS, listen=listen).tolist() == [0.25, 0.75]


def test_unknown_beats_are_told_with_what_to_give():
    with pytest.raises(UserError, match=r"features \[4, 29\] without a beat.*beat_seconds in metadata"):
        music_beats(FEATURES[:, :29], SECONDS)
    with pytest.raises(UserError, match="no music features"):
        music_beats()


def test_nan_music_is_one_error():
    broken = FEATURES.copy()
    broken[2, 7] = np.nan
    with pytest.raises(UserError, match="row 2 of the music features is NaN"):
        music_beats(broken, SECONDS, metadata={"beat_seconds": [1.0]})


def test_music_without_a_beat_in_the_clip_is_told():
    for metric in (beat_alignment_gain, beat_coverage):
        with pytest.raises(UserError, match="no beat within the clip's 3.00 s"):
            metric(np.array([1.0]), np.array([4.0]), 3.0)
