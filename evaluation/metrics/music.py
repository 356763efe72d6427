"""Does the dance follow the beat? Moments at which the dancer is slowest, held against the music's beats.

A beat alignment score alone says nothing: of random motion it is about 0.25, and published true dances have
0.20 to 0.24. What tells is the gain over the same music at other times. All constants are in seconds, and
motion is brought to 60 per second by cubic splines, so that frame rates from 10 per second on compare. Times
are seconds from the clip's first frame.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from system.errors import UserError

from .pose import openpose_points, present_points

RATE = 60.0  # per second, of the interpolated motion
SMOOTHING_SECONDS = 1 / 12  # standard deviation: Bailando's 5 frames at 60 per second
SIGMA_SECONDS = 0.05  # Bailando's 3 frames
LEAST_SHIFTS = 50
JOINTS = slice(0, 14)  # of OpenPose's order, without eyes and ears, which go with the nose
BRIDGED_SECONDS = 0.25  # a point absent for no longer is interpolated
LEAST_SEEN = 0.5  # of the frames, for a point to count; of the points, for a moment to count
DIGITS = 6  # of speeds in sizes per second: below is rounding, and no motion
BEAT_RECIPE, BEAT_WIDTH = "aist35", 35  # features whose last column is 1 at a beat
_TAPS = 30  # of the splines' filter: 0.27^30 is below rounding


class BeatGain(NamedTuple):
    """How much better a dance fits its music than the same music at other times."""

    score: float  # 0..1, with the music as it is
    shifted_mean: float  # the same over shifted music: the score by chance
    gain: float  # the difference; 0: the dance does not follow the beat
    share_beaten: float  # of the shifts, by the true music; 0.5 by chance, 0 without a stop


def motion_beats(key_points: np.ndarray, frame_rate: float) -> np.ndarray:
    """Return the seconds at which the dancer is slowest, [M]: local minima of the joints' mean speed.

    key_points: float [F, K, 3], x and y in any unit, confidence. Of known orders the 14 joints of the body
    without eyes and ears count, of others all points. Positions are interpolated by natural cubic splines,
    whose derivative gives the speed at 60 times per second, smoothed by a Gaussian of 1/12 s. A point that is
    absent for more than 0.25 s has its own mean speed there, so that its coming and going makes no beat; one
    that is absent in more than half of the frames does not count, nor does a moment at which half of the
    points are absent. Source: Bailando (arXiv:2203.13055), whose constants are in frames. None in a still
    video. Raises UserError when no point is seen in half of the frames.
    """
    ordered = openpose_points(np.asarray(key_points))
    points = np.asarray(key_points, np.float64) if ordered is None else ordered[:, JOINTS]
    is_there = present_points(points)
    is_seen = is_there.mean(axis=0) >= LEAST_SEEN if len(points) else np.zeros(0, bool)
    if not is_seen.any():
        raise UserError(
            f"no body point is seen in half of the {len(points)} frames; "
            "beats of the motion need a dancer who is in view"
        )
    places, is_known = _bridge_gaps(
        points[:, is_seen, :2], is_there[:, is_seen], round(BRIDGED_SECONDS * frame_rate)
    )
    seconds = np.arange(int((len(points) - 1) / frame_rate * RATE + 1e-6) + 1) / RATE
    speeds = np.linalg.norm(_velocities(places, frame_rate, seconds), axis=-1)  # [T, J]
    before = np.minimum((seconds * frame_rate + 1e-6).astype(int), len(points) - 1)
    after = np.minimum(before + 1, len(points) - 1)
    is_known = is_known[before] & is_known[after]
    own_means = np.where(is_known, speeds, 0).sum(axis=0) / np.maximum(is_known.sum(axis=0), 1)
    speed = _smooth(np.where(is_known, speeds, own_means).mean(axis=1))
    size = np.ptp(places.reshape(-1, 2), axis=0).max()
    lowest = _minima(np.round(speed / max(size, 1e-12), DIGITS))
    return seconds[lowest[is_known[lowest].mean(axis=1) > LEAST_SEEN]]


def music_beats(
    features: np.ndarray | None = None,
    seconds: np.ndarray | None = None,
    *,
    metadata: Mapping | None = None,
    listen: Callable[[], np.ndarray] | None = None,
) -> np.ndarray:
    """Return the seconds of the music's beats, [B], from the best of what there is.

    In this order: `beat_seconds` of the sample's metadata, which `prepare_guidance.py` writes; the last
    column of features [N, 35] in AIST++'s order (the recipe `aist35`, or 35 of no recorded recipe), where a
    beat has the time of its row in `seconds` [N]; `listen()`, which finds them in the sound. A row's time is
    off by up to half a frame, which at 10 frames per second costs a fifth of the score. Raises UserError when
    features are NaN or infinite, and where nothing tells the beats.
    """
    metadata = metadata or {}
    if features is not None:
        features = np.asarray(features)
        wrong = np.argwhere(~np.isfinite(features))
        if len(wrong):
            raise UserError(
                f"row {wrong[0][0]} of the music features is NaN or infinite; extract the features again"
            )
    if "beat_seconds" in metadata:
        return np.sort(np.asarray(metadata["beat_seconds"], np.float64))
    if features is not None and _has_beats(features, metadata):
        return np.asarray(seconds, np.float64)[features[:, -1] > 0.5]
    if listen is not None:
        return np.sort(np.asarray(listen(), np.float64))
    found = "no music features" if features is None else f"features {list(features.shape)} without a beat"
    raise UserError(
        f"the beats of the music are not known ({found}); give AIST++'s 35 features, beat_seconds in "
        "metadata/NAME.json, or a video with sound and librosa (pip install -r requirements-prepare.txt)"
    )


def beat_alignment_gain(
    motion_beats: np.ndarray,
    music_beats: np.ndarray,
    duration: float,
    *,
    num_shifts: int = 100,
    seed: int = 0,
) -> BeatGain:
    """Return how much better the motion fits this music than the music shifted in time; higher is better.

    Score: the mean over the music's beats of exp(-d^2 / (2 sigma^2)), d the seconds to the nearest beat of
    the motion, sigma 0.05 s (the form of Bailando, arXiv:2203.13055, with its constants at 60 frames per
    second). The music is shifted round the clip of `duration` seconds, by one random offset in each of
    num_shifts equal parts of it. Gain in -1..1: on the beat above 0.5, real dances 0 (popping) to .22
    (locking), random motion 0 on average, motion between the beats below 0. Limits: a single clip of 24 s
    scatters by 0.1, so trust the interval over clips; waltz arms are slowest off the beat. Raises UserError
    when no beat is in the clip.
    """
    if num_shifts < LEAST_SHIFTS:
        raise ValueError(f"at least {LEAST_SHIFTS} shifts expected, not {num_shifts}")
    motion_beats, music_beats = np.sort(motion_beats), _heard(music_beats, duration)
    random = np.random.default_rng(seed).random(num_shifts)
    offsets = (np.arange(num_shifts) + random) * duration / num_shifts
    score = float(_score(motion_beats, music_beats))
    shifted = _score(motion_beats, (music_beats + offsets[:, None]) % duration)
    mean = float(shifted.mean())
    return BeatGain(score, mean, score - mean, float((shifted < score).mean()))


def beat_coverage(motion_beats: np.ndarray, music_beats: np.ndarray, duration: float) -> float:
    """Return the number of the motion's beats for each beat of the music, within the clip; at least 0.

    B_k / B_m of Dancing to Music (arXiv:1911.02001). Neither more nor less is better: 1 is a movement for
    each beat, and true dances have .9 to 1.3. Beside a gain it says whether the dancer moves at all: a still
    video has 0, a trembling one many. Raises UserError when no beat is in the clip.
    """
    return len(_within(motion_beats, duration)) / len(_heard(music_beats, duration))


def _has_beats(features: np.ndarray, metadata: Mapping) -> bool:
    """Return whether the last of the features is the beat: by the recorded recipe, else by their number."""
    recorded = metadata.get("music_features")
    name = recorded.get("name") if isinstance(recorded, Mapping) else recorded
    return features.ndim == 2 and features.shape[1] == BEAT_WIDTH and name in (None, BEAT_RECIPE)


def _heard(music_beats: np.ndarray, duration: float) -> np.ndarray:
    """Return the music's beats within the clip, in order. Raises UserError when there is none."""
    beats = _within(music_beats, duration)
    if not len(beats):
        raise UserError(f"the music has no beat within the clip's {duration:.2f} s; give a longer clip")
    return beats


def _within(beats: np.ndarray, duration: float) -> np.ndarray:
    beats = np.sort(np.asarray(beats, np.float64))
    return beats[(beats >= 0) & (beats < duration)]


def _score(motion_beats: np.ndarray, music_beats: np.ndarray) -> np.ndarray:
    """Return the alignment score [...] of sorted beats of the motion [M] with the music's [..., B]."""
    if not len(motion_beats):
        return np.zeros(music_beats.shape[:-1])
    edges = np.concatenate([[-np.inf], motion_beats, [np.inf]])
    after = np.searchsorted(motion_beats, music_beats) + 1
    distances = np.minimum(music_beats - edges[after - 1], edges[after] - music_beats)
    return np.exp(-0.5 * (distances / SIGMA_SECONDS) ** 2).mean(axis=-1)


def _bridge_gaps(places: np.ndarray, is_there: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (places [F, J, 2], linear where a point is absent; bool [F, J]: whether they are reliable).

    They are where the point is present, and in gaps of at most `longest` frames between two such frames.
    """
    numbers = np.arange(len(places))[:, None]
    none_before, none_after = -1, len(places)
    before = np.maximum.accumulate(np.where(is_there, numbers, none_before), axis=0)
    after = np.minimum.accumulate(np.where(is_there, numbers, none_after)[::-1], axis=0)[::-1]
    is_known = is_there | ((before > none_before) & (after < none_after) & (after - before - 1 <= longest))
    before, after = np.where(before > none_before, before, after), np.where(after < none_after, after, before)
    share = ((numbers - before) / np.maximum(after - before, 1))[..., None]
    points = np.arange(places.shape[1])
    return (1 - share) * places[before, points] + share * places[after, points], is_known


def _velocities(places: np.ndarray, frame_rate: float, seconds: np.ndarray) -> np.ndarray:
    """Return velocities [T, J, 2], per second, of natural cubic splines through places [F, J, 2].

    The B-spline weights of a sequence are a filter over it, sqrt(3) (sqrt(3) - 2)^|k|; reflecting the ends
    through their points makes them natural.
    """
    if len(places) < 2:
        return np.zeros((len(seconds), *places.shape[1:]))
    values = np.pad(places.reshape(len(places), -1), ((_TAPS, _TAPS), (0, 0)), "reflect", reflect_type="odd")
    taps = np.sqrt(3) * (np.sqrt(3) - 2) ** np.abs(np.arange(-_TAPS, _TAPS + 1))
    weights = np.stack([np.convolve(column, taps, "same") for column in values.T], axis=1)
    before = np.minimum((seconds * frame_rate).astype(int), len(places) - 2)
    share = (seconds * frame_rate - before)[:, None]
    slopes = (
        -((1 - share) ** 2) / 2, share * (3 * share - 4) / 2, (1 + 2 * share - 3 * share**2) / 2, share**2 / 2
    )  # fmt: skip
    slope = sum(slopes[k] * weights[_TAPS + before + k - 1] for k in range(4))
    return frame_rate * slope.reshape(len(seconds), *places.shape[1:])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return values [T] at RATE per second under a Gaussian of SMOOTHING_SECONDS, mirrored at the ends."""
    reach = round(4 * SMOOTHING_SECONDS * RATE)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (SMOOTHING_SECONDS * RATE)) ** 2)
    return np.convolve(np.pad(values, reach, "symmetric"), taps / taps.sum(), "valid")


def _minima(values: np.ndarray) -> np.ndarray:
    """Return the indices of local minima of values [T], the middle of a flat one; an end is none."""
    starts = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)  # of runs of equal values
    ends = np.append(starts[1:], len(values)) - 1
    levels = values[starts]
    lower = np.flatnonzero((levels[1:-1] < levels[:-2]) & (levels[1:-1] < levels[2:])) + 1
    return (starts[lower] + ends[lower]) // 2
