"""True dances of a data folder as a model sees them: at its frame rate, with their music and its beats."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from datasets.dance_dataset import DanceDataset
from datasets.data_folder import read_metadata
from evaluation.metrics import music
from evaluation.metrics.motion import Motion, motion_of, torso_length
from system.errors import UserError

from .models import Model


@dataclasses.dataclass
class Take:
    """A true dance. key_points [N, K, 3]; rows [N, D] of music; beats: seconds, None where nobody knows."""

    name: str
    key_points: np.ndarray
    rows: np.ndarray
    reference: np.ndarray
    beats: np.ndarray | None
    frame_rate: float

    @property
    def duration(self) -> float:
        return len(self.key_points) / self.frame_rate

    def motion(self, track: np.ndarray | None = None) -> Motion:
        """Return the motion of a track of this dancer; of the true one, where none is given."""
        track = self.key_points if track is None else track
        return motion_of(track, self.frame_rate, torso_length(self.key_points))

    def gain(self, track: np.ndarray | None = None) -> music.BeatGain:
        beats = music.motion_beats(self.key_points if track is None else track, self.frame_rate)
        return music.beat_alignment_gain(beats, self.beats, self.duration)


def read_takes(data_dir: Path, model: Model) -> list[Take]:
    """Return all takes of a data folder, at the model's frame rate."""
    config = model.config
    dataset = DanceDataset(
        data_dir, config.music_channels, config.num_key_points, sequence_length=config.sequence_length,
        frame_rate=config.frame_rate, random_start=False,
    )  # fmt: skip
    takes = []
    for index, name in enumerate(dataset.sample_ids):
        item = dataset.read_whole(index)
        arrays = [item[key].numpy() for key in ("key_points", "music", "reference_pose")]
        metadata, seconds = read_metadata(data_dir, name), np.arange(len(arrays[0])) / config.frame_rate
        try:
            start = float(item["start_seconds"])
            beats = music.music_beats(arrays[1], seconds + start, metadata=metadata) - start
        except UserError:  # a layout in which nothing tells the beats
            beats = None
        heard = beats if beats is not None and len(beats) else None
        takes.append(Take(name, *arrays, heard, config.frame_rate))
    return takes
