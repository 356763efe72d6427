"""Windows of dances, key points with their music, read from a data folder whose videos need not be there."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.checking.folder_check import usable_samples
from datasets.checking.sample_check import CheckSettings
from datasets.guidance.openpose import OPENPOSE_COUNTS, flip_order
from datasets.guidance.track import Track
from system.errors import ConfigError

from .byte_cache import ByteCache
from .clip_frames import clip_generator, draw_start
from .data_folder import Sample, list_data_folder
from .takes import (
    check_music,
    check_seconds,
    event_columns,
    read_take_rows,
    read_timeline,
    reference_frames,
    resample_features,
    resample_key_points,
    row_positions,
)

CACHE_BYTES = 2**30  # of takes, in each data-loading worker: an hour of 134 points at 30 a second takes 0.2


@dataclasses.dataclass(frozen=True)
class Take:
    """A whole dance at the dataset's frame rate."""

    key_points: np.ndarray  # float32 [N, K, 3], x and y in heights of the frame
    music: np.ndarray  # float32 [N, D']
    start_seconds: float  # of its first frame
    aspect: float  # width of the frame over its height
    references: np.ndarray  # frames that show a body to begin from, ascending
    events: np.ndarray  # columns of music that mark single rows


class DanceDataset(Dataset):
    """Windows of `poses/` and `music_features/`, matched by name.

    An item is a dict: key_points float32 [F, K, 3], x and y in heights of the frame; music [F, D'];
    reference_pose [K, 3] of another frame of the take; sample_id; start_seconds float64; num_frames int64:
    after so many a take shorter than the window has ended, points are absent and music stands still.

    Raises DataError for what is missing, and from reading for what is broken.
    """

    def __init__(
        self,
        data_root: str | Path,
        num_features: int,
        num_key_points: int,
        *,
        sequence_length: int,
        frame_rate: float | None = None,  # of all items; None: the first sample's
        music_features: Callable[[np.ndarray], np.ndarray]
        | None = None,  # of a whole take: [N, D] to [N, D']
        music_feature_fps: float | None = None,
        time_stretch: float = 0.1,  # a window is up to so much slower or faster, with its music
        random_flip: bool = True,
        random_start: bool = True,  # False: each window is the first of its take, and nothing is random
        seed: int = 0,
        skip_invalid: bool = False,
        left_out: Sequence[tuple[str, str]] | None = None,  # what another process found with skip_invalid
    ) -> None:
        if num_key_points not in OPENPOSE_COUNTS:
            known = ", ".join(map(str, OPENPOSE_COUNTS))
            problem = f"pose's --guidance_input_channels is {num_key_points}"
            raise ConfigError(f"{problem}: a dance needs OpenPose's order of points, {known} of them")
        if sequence_length < 2 or not 0 <= time_stretch < 1:
            raise ValueError("sequence_length must be at least 2, and time_stretch in 0..1")
        self.channels = {"music": num_features, "pose": num_key_points}
        self.sequence_length, self.music_features = sequence_length, music_features
        self.music_feature_fps, self.time_stretch = music_feature_fps, time_stretch
        self.random_flip, self.random_start, self.seed, self.epoch = random_flip, random_start, seed, 0
        self._cache = ByteCache(CACHE_BYTES)
        self._folder = list_data_folder(data_root, list(self.channels), needs_videos=False)
        settings = CheckSettings(self.channels, 1, (1, 1), music_feature_fps)
        self._samples, self.left_out = usable_samples(
            self._folder, settings, skip_invalid=skip_invalid, left_out=left_out
        )
        if frame_rate is None:
            tracks = self._tracks(self._samples[0])
            timeline = read_timeline(self._folder, self._samples[0], tracks)
            frame_rate = tracks["pose"].fps or timeline.frame_rate
        self.frame_rate = frame_rate

    @property
    def sample_ids(self) -> list[str]:
        return [sample.sample_id for sample in self._samples]

    @property
    def clip_span(self) -> int:
        """Return the frames of a window that is not stretched."""
        return self.sequence_length

    def __len__(self) -> int:
        return len(self._samples)

    def video_path(self, index: int) -> Path | None:
        """Return a take's video, for its sound, or None: it need not be there."""
        return next(iter(self._samples[index].video_paths), None)

    def num_frames(self, index: int) -> int:
        """Return the frames of a take, at the dataset's frame rate."""
        return len(self._take(self._samples[index]).key_points)

    # ---- items ----

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's random windows. Workers that live through epochs have their own copy to set."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        """Return a window that depends on (seed, epoch, sample) only."""
        if not self.random_start:
            return self.read_window(index)
        sample = self._samples[index]
        take, window = self._take(sample), np.arange(self.sequence_length)
        generator = clip_generator(self.seed, self.epoch, sample.sample_id)
        step = 1 + self.time_stretch * generator.uniform(-1, 1)
        start = draw_start(generator, len(take.key_points), int(np.ceil(window[-1] * step)) + 1)
        flipped = self.random_flip and bool(generator.integers(2))
        reference = int(generator.choice(take.references))
        return self._item(index, start + step * window, reference, flipped=flipped)

    def read_window(self, index: int, start_seconds: float | None = None) -> dict:
        """Return the window from a time on (None: the take's first), always the same."""
        take = self._take(self._samples[index])
        start = 0.0 if start_seconds is None else (start_seconds - take.start_seconds) * self.frame_rate
        start = np.clip(start, 0, len(take.key_points) - 1)
        return self._item(index, start + np.arange(self.sequence_length))

    def read_whole(self, index: int) -> dict:
        """Return the whole take as an item."""
        return self._item(index, np.arange(self.num_frames(index)))

    def _item(
        self, index: int, positions: np.ndarray, reference: int | None = None, *, flipped: bool = False
    ) -> dict:
        """Return the item at positions in frames of the take, some of which may lie after its end.

        reference: the frame that it begins from; None: the take's first that shows a body.
        """
        sample = self._samples[index]
        take = self._take(sample)
        last = len(take.key_points) - 1
        num_frames = int((positions <= last + 1e-6).sum())
        within = np.minimum(positions[:num_frames], last)
        key_points = np.zeros((len(positions), *take.key_points.shape[1:]), np.float32)
        key_points[:num_frames] = resample_key_points(take.key_points, within)
        music = resample_features(take.music, within, take.events)
        music = np.concatenate([music, np.repeat(music[-1:], len(positions) - num_frames, 0)])
        reference_pose = take.key_points[take.references[0] if reference is None else reference]
        if flipped:
            key_points, reference_pose = (
                flip(points, take.aspect) for points in (key_points, reference_pose)
            )
        return {
            "key_points": torch.from_numpy(key_points),
            "music": torch.from_numpy(music),
            "reference_pose": torch.from_numpy(reference_pose.copy()),
            "sample_id": sample.sample_id,
            "start_seconds": torch.tensor(
                take.start_seconds + positions[0] / self.frame_rate, dtype=torch.float64
            ),
            "num_frames": torch.tensor(num_frames),
        }

    # ---- reading, through the cache ----

    def _tracks(self, sample: Sample) -> dict[str, Track]:
        tracks = {name: self._folder.track(sample, name, self.music_feature_fps) for name in self.channels}
        for name, track in tracks.items():
            track.kind.check_layout(track, self.channels[name])  # before its rows are counted
        return tracks

    def _take(self, sample: Sample) -> Take:
        take = self._cache.get(sample.sample_id)
        if take is None:
            take = self._read_take(sample)
            self._cache.put(sample.sample_id, take, take.key_points.nbytes + take.music.nbytes)
        return take

    def _read_take(self, sample: Sample) -> Take:
        tracks = self._tracks(sample)
        timeline = read_timeline(self._folder, sample, tracks)
        pose, seconds = tracks["pose"], timeline.frame_seconds
        num_frames = int((seconds[-1] - seconds[0]) * self.frame_rate + 0.1) + 1
        check_seconds(pose, num_frames, self.frame_rate)
        at = seconds[0] + np.arange(num_frames) / self.frame_rate
        rows = {
            name: read_take_rows(track, self.channels[name], timeline.size) for name, track in tracks.items()
        }
        check_music(tracks["music"], rows["music"].shape[1:])
        times = {
            name: seconds if track.fps is None else np.arange(track.num_rows) / track.fps
            for name, track in tracks.items()
        }
        aspect = timeline.size[1] / timeline.size[0] if timeline.size else 1.0
        points = rows["pose"] * np.array([aspect, 1, 1], np.float32)
        points *= points[..., 2:] > 0  # an absent point is nowhere
        points = resample_key_points(points, row_positions(times["pose"], at))
        music = rows["music"]
        music = resample_features(music, row_positions(times["music"], at), event_columns(music))
        if self.music_features is not None:
            music = np.asarray(self.music_features(music), np.float32)
        references = reference_frames(pose, points)
        return Take(points, music, float(seconds[0]), aspect, references, event_columns(music))


def flip(points: np.ndarray, aspect: float) -> np.ndarray:
    """Return key points [..., K, 3] seen in a mirror: left and right exchanged, x counted from the right."""
    flipped = points[..., flip_order(points.shape[-2]), :]
    flipped[..., 0] = aspect - flipped[..., 0]
    return flipped * (flipped[..., 2:] > 0)
