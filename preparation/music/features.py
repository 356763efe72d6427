"""Music features by name, one row per video frame at the frame's time; users' own functions too.

A function is given the sound (mono), its sample rate and the frames' times in seconds from the sound's first
sample, and returns [N, D], N frames. librosa does the listening.
"""

import importlib.util
from collections.abc import Callable

import numpy as np

from system.errors import ConfigError
from system.user_code import load_user_object

from .librosa_loading import load_librosa

MusicFunction = Callable[[np.ndarray, int, np.ndarray], np.ndarray]

SAMPLE_RATE = 22_050
HOP = 256  # 11.6 ms: several rows per video frame, so that a beat finds its frame
WINDOW = 1024
CHROMA_HOP = 512
CHROMA_SMOOTHING_SECONDS = 0.68  # AIST++: 41 rows at 60 per second
# librosa places onsets and beats late: by 6 to 15 ms for clicks, noise bursts, tones and kick drums at known
# times, with this hop and window.
DELAY_SECONDS = 0.009

_REGISTRY: dict[str, MusicFunction] = {}


def register_music_features(name: str):
    """Return a decorator: `--music_features name` computes music by function(sound, rate, frame_seconds)."""

    def register(function: MusicFunction) -> MusicFunction:
        _REGISTRY[name] = function
        return function

    return register


def music_feature_names() -> list[str]:
    return sorted(_REGISTRY)


def check_music_features(name: str) -> None:
    """Raise ConfigError when the features are unknown, or librosa is not installed."""
    if importlib.util.find_spec("librosa") is None:
        raise ConfigError(
            "librosa is not installed; install it with: pip install -r requirements-prepare.txt"
        )
    _function(name)


def compute_music_features(
    name: str, sound: np.ndarray, sample_rate: int, frame_seconds: np.ndarray
) -> np.ndarray:
    """Return the named features, float32 [N, D]. Raises ConfigError where a user's function gives others."""
    features = np.asarray(_function(name)(sound, sample_rate, frame_seconds))
    rows = len(frame_seconds)
    has_rows = features.ndim == 2 and len(features) == rows and features.shape[1] > 0
    if not has_rows or features.dtype.kind not in "fiub":
        raise ConfigError(
            f"--music_features {name} returned {features.dtype} of shape {list(features.shape)}; "
            f"expected numbers [{rows}, D], one row per frame"
        )
    if not np.isfinite(features).all():
        raise ConfigError(f"--music_features {name} returned NaN or infinite values")
    return features.astype(np.float32)


def _function(name: str) -> MusicFunction:
    if ":" in name:
        return load_user_object(name, "--music_features")
    if name not in _REGISTRY:
        known = ", ".join(music_feature_names())
        raise ConfigError(f"--music_features {name}: expected {known} or your own MODULE:FUNCTION")
    return _REGISTRY[name]


def find_beats(sound: np.ndarray, sample_rate: int) -> tuple[float, np.ndarray]:
    """Return (beats per minute, seconds of the beats from the sound's start); (0, none): none found."""
    return _beats(_onset_strength(_resample(sound, sample_rate)))


@register_music_features("beat")
def beat_strength(sound: np.ndarray, sample_rate: int, frame_seconds: np.ndarray) -> np.ndarray:
    """Return the onset strength [N, 1]: how strongly something begins to sound during each frame."""
    return _strongest_in_frame(_onset_strength(_resample(sound, sample_rate)), frame_seconds)[:, None]


@register_music_features("aist35")
def aist35(sound: np.ndarray, sample_rate: int, frame_seconds: np.ndarray) -> np.ndarray:
    """Return AIST++'s (arXiv:2101.08779) [N, 35]: onset strength, 20 MFCC, 12 chroma, onset peak, beat."""
    librosa = load_librosa()
    sound = _resample(sound, sample_rate)
    strength = _onset_strength(sound)
    mfcc = librosa.feature.mfcc(y=sound, sr=SAMPLE_RATE, n_mfcc=20, hop_length=HOP, n_fft=2048)
    smoothing = round(CHROMA_SMOOTHING_SECONDS * SAMPLE_RATE / CHROMA_HOP)
    chroma = librosa.feature.chroma_cens(
        y=sound, sr=SAMPLE_RATE, hop_length=CHROMA_HOP, win_len_smooth=smoothing, tuning=_tuning(sound)
    )
    peaks = librosa.onset.onset_detect(onset_envelope=strength, sr=SAMPLE_RATE, hop_length=HOP, units="time")
    _, beat_seconds = _beats(strength)
    columns = (
        _strongest_in_frame(strength, frame_seconds),
        _rows_at(mfcc, HOP, frame_seconds),
        _rows_at(chroma, CHROMA_HOP, frame_seconds),
        mark_frames(peaks - DELAY_SECONDS, frame_seconds),
        mark_frames(beat_seconds, frame_seconds),
    )
    return np.column_stack(columns)


def mark_frames(seconds: np.ndarray, frame_seconds: np.ndarray) -> np.ndarray:
    """Return [N]: 1 for the frame nearest to each moment, else 0; moments off the ends have no frame."""
    marks = np.zeros(len(frame_seconds))
    frames, inside = _nearest_frames(np.asarray(seconds), frame_seconds)
    marks[frames[inside]] = 1
    return marks


def _resample(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    librosa = load_librosa()
    return librosa.resample(np.asarray(sound, np.float32), orig_sr=sample_rate, target_sr=SAMPLE_RATE)


def _onset_strength(sound: np.ndarray) -> np.ndarray:
    librosa = load_librosa()
    return librosa.onset.onset_strength(y=sound, sr=SAMPLE_RATE, hop_length=HOP, n_fft=WINDOW)


def _beats(strength: np.ndarray) -> tuple[float, np.ndarray]:
    librosa = load_librosa()
    tempo, beats = librosa.beat.beat_track(
        onset_envelope=strength, sr=SAMPLE_RATE, hop_length=HOP, units="time"
    )
    return float(np.atleast_1d(tempo)[0]), np.asarray(beats) - DELAY_SECONDS


def _tuning(sound: np.ndarray) -> float:
    """Return fractions of a semitone; 0 where nothing is loud enough, which librosa warns of."""
    librosa = load_librosa()
    return 0.0 if np.abs(sound).max(initial=0) < 1e-4 else librosa.estimate_tuning(y=sound, sr=SAMPLE_RATE)


def _rows_at(features: np.ndarray, hop: int, frame_seconds: np.ndarray) -> np.ndarray:
    """Return columns of [D, T], the t-th centred on sample t x hop, interpolated at frames' times: [N, D]."""
    positions = np.clip(frame_seconds * SAMPLE_RATE / hop, 0, features.shape[1] - 1)
    before = np.floor(positions).astype(int)
    after = np.minimum(before + 1, features.shape[1] - 1)
    share = positions - before
    return ((1 - share) * features[:, before] + share * features[:, after]).T


def _strongest_in_frame(strength: np.ndarray, frame_seconds: np.ndarray) -> np.ndarray:
    """Return [N]: the largest value nearer to a frame's time than to any other frame's."""
    seconds = np.arange(len(strength)) * HOP / SAMPLE_RATE - DELAY_SECONDS
    rows = np.interp(frame_seconds, seconds, strength)
    frames, inside = _nearest_frames(seconds, frame_seconds)
    np.maximum.at(rows, frames[inside], strength[inside])
    return rows


def _nearest_frames(seconds: np.ndarray, frame_seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (the nearest frame of each moment, whether it is at most half a frame off the first or last)."""
    borders = (frame_seconds[1:] + frame_seconds[:-1]) / 2
    half = np.median(np.diff(frame_seconds)) / 2 if len(frame_seconds) > 1 else 0.02
    inside = (seconds >= frame_seconds[0] - half) & (seconds <= frame_seconds[-1] + half)
    return np.searchsorted(borders, seconds), inside
