"""What the model hears: rows of music features in groups, and where each row stands between the beats.

With few songs, timbre and harmony name the song and make a new one worse; rhythm carries over. So features
have groups, which can be dropped one by one, and the beats become phases, which are the same in every song.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# Columns of the known layouts: onset strength, 20 MFCC, 12 chroma, onset peak, beat.
_COLUMNS_OF_35 = {"rhythm": [0, 33, 34], "timbre": list(range(1, 21)), "harmony": list(range(21, 33))}
GROUPS_OF_RECIPES = {"aist35": _COLUMNS_OF_35, "demo35": _COLUMNS_OF_35}
BEAT_CHANNELS = {"aist35": 34, "demo35": 34}
UNKNOWN_LAYOUT = "all"  # the one group of features of which nobody knows what they are

PHASE_BEATS = (1, 2, 4)
NEARNESS_SECONDS = (0.05, 0.1)
NUM_BEAT_COLUMNS = 2 * len(PHASE_BEATS) + len(NEARNESS_SECONDS)


class MusicFeatures:
    """Appends the beat phase to the rows of a whole track; knows which columns make which group."""

    def __init__(
        self,
        num_features: int,
        groups: Mapping[str, Sequence[int]] | None = None,
        beat_channel: int | None = None,
        frame_rate: float = 25.0,
    ) -> None:
        self.num_features, self.beat_channel, self.frame_rate = num_features, beat_channel, frame_rate
        # A saved model's configuration has its keys sorted, and each group has its place in the weights.
        self.groups = {name: list(columns) for name, columns in sorted((groups or {}).items())}
        self.groups = self.groups or {UNKNOWN_LAYOUT: list(range(num_features))}
        if beat_channel is not None:
            columns = range(num_features, num_features + NUM_BEAT_COLUMNS)
            self.groups["rhythm"] = [*self.groups.get("rhythm", []), *columns]

    @property
    def num_columns(self) -> int:
        """Return D', the width of what `__call__` returns."""
        return self.num_features + (0 if self.beat_channel is None else NUM_BEAT_COLUMNS)

    def __call__(self, rows: np.ndarray, frame_rate: float | None = None) -> np.ndarray:
        """Return float32 [N, D'] for the rows [N, D] of a whole track; frame_rate: if not the model's."""
        rows = np.asarray(rows, np.float32)
        if self.beat_channel is None:
            return rows
        beats = beat_frames(rows[:, self.beat_channel]) / (frame_rate or self.frame_rate)
        seconds = np.arange(len(rows)) / (frame_rate or self.frame_rate)
        return np.concatenate([rows, beat_columns(seconds, beats)], axis=1)


def beat_frames(beat: np.ndarray) -> np.ndarray:
    """Return the places of the beats in rows, float64 [M]; neighbouring rows above .5 are one beat."""
    above = np.flatnonzero(beat > 0.5)
    runs = np.split(above, np.flatnonzero(np.diff(above) > 1) + 1) if len(above) else []
    return np.array([np.average(run, weights=beat[run]) for run in runs], np.float64)


def beat_columns(seconds: np.ndarray, beats: np.ndarray) -> np.ndarray:
    """Return float32 [N, 8]: sine and cosine of the phase in 1, 2, 4 beats; nearness to a beat, .05 and .1 s.

    The phase runs from beat to beat, and on at the pace of the first and last two beyond them. Zeros where
    there are not two beats.
    """
    columns = np.zeros((len(seconds), NUM_BEAT_COLUMNS), np.float32)
    if len(beats) < 2:
        return columns
    count = np.interp(seconds, beats, np.arange(len(beats)))
    early, late = seconds < beats[0], seconds > beats[-1]
    count[early] = (seconds[early] - beats[0]) / (beats[1] - beats[0])
    count[late] = len(beats) - 1 + (seconds[late] - beats[-1]) / (beats[-1] - beats[-2])
    for place, num_beats in enumerate(PHASE_BEATS):
        angle = 2 * np.pi * count / num_beats
        columns[:, 2 * place], columns[:, 2 * place + 1] = np.sin(angle), np.cos(angle)
    place = np.searchsorted(beats, seconds).clip(1, len(beats) - 1)
    distance = np.minimum(np.abs(seconds - beats[place - 1]), np.abs(seconds - beats[place]))
    for place, spread in enumerate(NEARNESS_SECONDS):
        columns[:, 2 * len(PHASE_BEATS) + place] = np.exp(-0.5 * (distance / spread) ** 2)
    return columns
