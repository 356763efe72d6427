"""Clips of dance videos with their guidance and reference images, read from the documented data folder."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.checking.folder_check import usable_samples
from datasets.checking.kept_facts import KeptFacts
from datasets.checking.looks import rows_base, track_look
from datasets.checking.sample_check import CheckSettings
from datasets.feature_statistics import Moments, flat_rows, mean_and_deviation
from datasets.guidance.track import Track
from datasets.media.pictures import read_image
from datasets.media.video import FrameTable, VideoReader
from system.errors import DataError

from .byte_cache import ByteCache
from .clip_frames import check_clip, clip_generator, draw_start
from .data_folder import DataFolder, Sample, list_data_folder, recorded_recipe
from .transforms import (
    FITS,
    ClipTransform,
    Size,
    as_size,
    clip_image_transform,
    make_transform,
    nearest_size,
    person_box,
    reference_transform,
    to_signed,
)

DATA_FORMATS = ("video", "image")
CACHE_BYTES = 256 * 2**20  # of guidance rows and frame tables, in each data-loading worker


class GuidanceDataset(Dataset):
    """Clips of `videos/`, guidance of one folder per type, images of `reference_images/`, matched by name.

    An item is a dict: frames [F, 3, H, W] in [-1, 1], guidance {type: [F, ...]}, reference_image [3, H, W],
    clip_image [3, 224, 224], sample_id, frame_indices int64 [F] and frame_seconds float64 [F] of the video.
    Guidance: key points [F, K, 3] in 0..1 of the crop, features as stored, maps [F, C, H, W] in 0..1.

    The constructor lists folders and opens nothing, but for random_flip, which looks at the first sample, and
    skip_invalid, which checks every sample and leaves out (see left_out) those with a fault. Raises DataError
    for what is missing, and from reading for what is broken.
    """

    def __init__(
        self,
        data_root: str | Path,
        guidance_types: Sequence[str] = ("music", "pose"),
        guidance_input_channels: Sequence[int] = (1, 134),  # in the order of guidance_types
        *,
        resolution: int | Size = 512,  # one number, or (height, width)
        buckets: Sequence[Size] = (),  # instead, the one of them that is nearest a video's aspect ratio
        sequence_length: int = 16,  # frames per clip; the image format reads one
        frame_stride: int = 1,  # in frames of the video
        music_feature_fps: float | None = None,  # None: one row per frame, unless a meta.json states a rate
        seed: int = 0,
        data_format: str = "video",  # video: clips; image: single frames
        fit: str = "auto",  # crop: cover the frame and cut what hangs over; pad: keep all, with black bars
        center_crop: bool = False,  # every clip of a video has the same crop, about the person
        random_flip: bool = False,  # half of the clips are flipped, left and right key points exchanged
        random_start: bool = True,  # False: each clip is the first of its video
        skip_invalid: bool = False,
        left_out: Sequence[tuple[str, str]] | None = None,  # what another process found with skip_invalid
        kept: KeptFacts | None = None,  # what a check has read: it need not be read again
    ) -> None:
        self.channels = _checked_channels(guidance_types, guidance_input_channels)
        for name, value, known in (("data_format", data_format, DATA_FORMATS), ("fit", fit, FITS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.data_root = Path(data_root)
        self.resolution, self.buckets = as_size(resolution), tuple(map(as_size, buckets))
        self.data_format, self.fit, self.random_start, self.seed = data_format, fit, random_start, seed
        self.center_crop, self.random_flip = center_crop, random_flip
        self.sequence_length = 1 if data_format == "image" else sequence_length
        self.frame_stride, self.music_feature_fps = frame_stride, music_feature_fps
        sides = itertools.chain(self.resolution, *self.buckets)
        if min(*sides, self.sequence_length, frame_stride) < 1:
            raise ValueError("resolution, buckets, sequence_length and frame_stride must be at least 1")
        self.epoch, self._kept = 0, kept
        self._cache = ByteCache(CACHE_BYTES)
        # Found out of all rows of a (sample id, type), once: a cache that is full would have them read for
        # every clip.
        self._units: dict[tuple[str, str], str | None] = {}
        self._memos: dict[tuple[str, str], dict] = {}
        settings = CheckSettings(self.channels, self.clip_span, self.resolution, music_feature_fps)
        self._folder, self._samples, self.left_out = self._listed(settings, skip_invalid, left_out)
        if random_flip:
            for name in self.channels:
                track = self._track(self._samples[0], name)
                track.kind.check_flippable(track, self.condition_shapes[name])

    def _listed(
        self, settings: CheckSettings, skip_invalid: bool, left_out: Sequence[tuple[str, str]] | None
    ) -> tuple[DataFolder, Sequence[Sample], list[tuple[str, str]]]:
        """Return (the folder, the samples to read, those left out). Raises DataError."""
        folder = list_data_folder(self.data_root, settings.channels)
        return folder, *usable_samples(folder, settings, skip_invalid=skip_invalid, left_out=left_out)

    # ---- what there is ----

    @property
    def sample_ids(self) -> list[str]:
        return [sample.sample_id for sample in self._samples]

    @property
    def clip_span(self) -> int:
        """Frames of the video from a clip's first to its last."""
        return 1 + (self.sequence_length - 1) * self.frame_stride

    def __len__(self) -> int:
        return len(self._samples)

    def video_path(self, index: int) -> Path:
        return self._samples[index].video_path()

    @property
    def frame_rate(self) -> float:
        """Return the frame rate of the first video."""
        return self._video(self._samples[0]).frame_rate

    def num_frames(self, index: int) -> int:
        """Return the number of frames of the video."""
        return len(self._video(self._samples[index]))

    def frame_size(self, index: int) -> Size:
        """Return (height, width) of the video's frames."""
        return self._video(self._samples[index]).size

    def clip_size(self, index: int) -> Size:
        """Return (height, width) of the sample's clips and of its reference image."""
        return self._size_of_clips(self._samples[index])

    def _size_of_clips(self, sample: Sample) -> Size:
        return nearest_size(self._video(sample).size, self.buckets) if self.buckets else self.resolution

    def frame_seconds(self, index: int) -> np.ndarray:
        """Return the presentation times of the video's frames, float64 [N]."""
        return self._video(self._samples[index]).frame_seconds

    def source_files(self, index: int) -> dict[str, tuple[list[Path], str]]:
        """Return {"video" | "reference_image" | "guidance/TYPE": (files, what is stated of them)}."""
        sample = self._samples[index]
        tracks = {f"guidance/{name}": self._track(sample, name) for name in self.channels}
        return {
            "video": ([sample.video_path()], ""),
            "reference_image": ([sample.reference_path()], ""),
            **{name: (list(track.files or [track.path]), track.stated) for name, track in tracks.items()},
        }

    @functools.cached_property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """{type: shape of one frame's condition}, as the first sample has it; the others must agree.

        With buckets, but for the height and width of maps: those of the sample's clips.
        """
        shapes = {}
        for name, channels in self.channels.items():
            track = self._track(self._samples[0], name)
            shapes[name] = self._rows(self._samples[0], track, np.array([0]), channels).shape[1:]
            if track.kind.is_map(track, shapes[name]):
                shapes[name] = (channels, *self._size_of_clips(self._samples[0]))
        return shapes

    def feature_statistics(self, indices: Sequence[int] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Return {type: (mean [D], standard deviation [D])} of the types that do not lie in the frame.

        Over all rows of the samples `indices` (None: of all), which are read where a check did not keep them.
        """
        samples = self._samples if indices is None else [self._samples[index] for index in indices]
        return {
            name: mean_and_deviation(self._moments(samples, name, channels))
            for name, channels in self.channels.items()
            if not self._track(samples[0], name).kind.in_frame
        }

    def _moments(self, samples: list[Sample], name: str, channels: int) -> Iterator[Moments]:
        """Yield what each sample's rows add to the statistics: as they are kept, else by reading them."""
        base = rows_base(self.data_root, name, channels)
        for sample in samples:
            found = None
            if self._kept is not None:
                found = self._kept.moments(sample, name, track_look(sample, name, base))
            if found is None:
                track = self._track(sample, name)
                rows = self._rows(sample, track, np.arange(track.num_rows), channels)
                found = Moments.of(flat_rows(rows, channels))
            yield found

    def recipe(self, type_name: str) -> str | None:
        """Return the name of the recipe of the music features, or poses; None: not recorded.

        Raises DataError where samples differ.
        """
        return recorded_recipe(self.data_root, self.sample_ids, type_name)

    # ---- clips ----

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's random clips. Workers that live through epochs have their own copy to set."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        """Return a clip that depends on (seed, epoch, sample) only."""
        if not self.random_start:
            return self.read_clip(index)
        sample = self._samples[index]
        video = self._video(sample)
        generator = clip_generator(self.seed, self.epoch, sample.sample_id)
        return self._clip(sample, video, draw_start(generator, len(video), self.clip_span), generator)

    def read_clip(self, index: int, start_frame: int = 0) -> dict:
        """Return the clip from a given frame of the video, cropped about the person, always the same."""
        sample = self._samples[index]
        return self._clip(sample, self._video(sample), start_frame, None)

    def read_whole(self, index: int, num_frames: int) -> Iterator[dict]:
        """Yield all frames of a video in parts of `num_frames`, with their guidance, as center_crop has them.

        A part is a dict: frames [n, 3, H, W], guidance {type: [n, ...]}.
        """
        sample = self._samples[index]
        video, transform = self._video(sample), None
        pixels = video.iterate()
        for first in range(0, len(video), num_frames):
            frames = np.arange(first, min(first + num_frames, len(video)))
            rows = self._rows_of(sample, video, frames)
            transform = transform or make_transform(
                video.size, self._size_of_clips(sample), fit=self.fit, person=self._person_of_video(sample)
            )
            images = [transform.image(frame) for frame in itertools.islice(pixels, len(frames))]
            guidance = self._conditions(rows, video.size, transform)
            yield {"frames": to_signed(np.stack(images)), "guidance": guidance}

    def read_reference(self, index: int) -> dict:
        """Return reference_image [3, H, W] and clip_image [3, 224, 224] of a sample."""
        return self._reference(self._samples[index], flipped=False)

    def _clip(self, sample: Sample, video: VideoReader, start: int, generator) -> dict:
        frames = start + self.frame_stride * np.arange(self.sequence_length)
        check_clip(video.path, len(video), frames)
        rows = self._rows_of(sample, video, frames)
        # A flip is of the whole sample: the reference shows the same person.
        flipped = self.random_flip and generator is not None and bool(generator.integers(2))
        person = self._person_of_video(sample) if self.center_crop else _person(rows)
        transform = make_transform(
            video.size, self._size_of_clips(sample), fit=self.fit, person=person,
            generator=None if self.center_crop else generator,
        )  # fmt: skip
        transform = dataclasses.replace(transform, flipped=flipped)
        return {
            "frames": to_signed(video.read(frames, transform.image)),
            "guidance": self._conditions(rows, video.size, transform),
            **self._reference(sample, flipped),
            "sample_id": sample.sample_id,
            "frame_indices": torch.from_numpy(frames),
            "frame_seconds": torch.from_numpy(video.frame_seconds[frames]),
        }

    def _reference(self, sample: Sample, flipped: bool) -> dict:
        reference = read_image(sample.reference_path())
        size = self._size_of_clips(sample)
        reference = reference_transform(reference, size, self.fit, flipped=flipped)
        return {"reference_image": reference, "clip_image": clip_image_transform(reference)}

    def _rows_of(self, sample: Sample, video: VideoReader, frames: np.ndarray) -> dict:
        """Return {type: (track, its rows at these frames)}."""
        found = {}
        for name, channels in self.channels.items():
            track = self._track(sample, name)
            places = track.rows_at(frames, video.frame_seconds)
            found[name] = (track, self._rows(sample, track, places, channels))
        return found

    def _person_of_video(self, sample: Sample) -> tuple[float, float, float, float] | None:
        """Return the box of the key points of all frames; the first time reads all their files."""
        key = (sample.sample_id, "person")
        entry = self._cache.get(key)
        if entry is None:
            rows = {}
            for name, channels in self.channels.items():
                track = self._track(sample, name)
                if track.kind.on_person:
                    rows[name] = (track, self._rows(sample, track, np.arange(track.num_rows), channels))
            entry = (_person(rows),)  # a tuple, as there may be no box
            self._cache.put(key, entry, 100)
        return entry[0]

    def _conditions(self, rows: dict, frame_size: Size, transform: ClipTransform) -> dict[str, Tensor]:
        """Return {type: condition [F, ...]} of a clip from its rows (of `_rows_of`)."""
        conditions = {}
        for name, (track, values) in rows.items():
            conditions[name] = track.kind.fit(track, values, transform, frame_size)
            shape, usual = tuple(conditions[name].shape[1:]), self.condition_shapes[name]
            if self.buckets and track.kind.is_map(track, values.shape[1:]):
                usual = (*usual[:-2], *transform.output_size)
            if shape != usual:
                expected = f"{list(usual)} in sample {self._samples[0].sample_id!r}"
                problem = f"a frame's {name} is {list(shape)}, but {expected}"
                raise DataError(track.path, problem, "extract all samples alike")
        return conditions

    # ---- reading, through the cache ----

    def _video(self, sample: Sample) -> VideoReader:
        path = sample.video_path()
        table: FrameTable | None = self._cache.get(path)
        if table is None and self._kept is not None:
            table = self._kept.frame_table(sample)
        reader = VideoReader(path, table)
        self._cache.put(path, reader.table, reader.table.nbytes)
        return reader

    def _track(self, sample: Sample, name: str) -> Track:
        key = (sample.sample_id, name)
        track = self._cache.get(key)
        if track is None:
            track = self._folder.track(sample, name, self.music_feature_fps)
            track = dataclasses.replace(track, memo=self._memos.setdefault(key, {}))
            track.kind.check_layout(track, self.channels[name])  # before its rows are counted
            self._cache.put(key, track, 500 * (1 + len(track.files or ())))  # a path takes some 500 bytes
        return track

    def _rows(self, sample: Sample, track: Track, rows: np.ndarray, channels: int) -> np.ndarray:
        """Return rows as one array [n, ...]: key points in 0..1 of the frame, most other kinds as stored."""
        key = (sample.sample_id, track.type_name)
        if key not in self._units:  # without a statement, a video's first clip reads all its rows
            self._units[key] = track.kind.units(track, lambda asked: self._read(track, asked, channels))
        units, read = self._units[key], self._read(track, rows, channels)
        return track.kind.values(track, rows, read, units, self._video(sample).size if units else None)

    def _read(self, track: Track, rows: Iterable[int], channels: int) -> list:
        """Return rows as the kind's reader gives them."""
        read, values = None, []
        for row in map(int, rows):
            value = self._cache.get((track.path, row))
            if value is None:
                read = read or track.kind.reader(track, channels)
                value = read(row)
                array = track.kind.array_of(value)
                if array.ndim < 3:  # maps are as large as the frames
                    self._cache.put((track.path, row), value, array.nbytes)
            values.append(value)
        return values


def _checked_channels(guidance_types: Sequence[str], input_channels: Sequence[int]) -> dict[str, int]:
    types, channels = list(guidance_types), list(input_channels)
    if isinstance(guidance_types, str) or not types or len(set(types)) < len(types):
        raise ValueError(f"guidance_types must be different names, got {guidance_types!r}")
    if len(types) != len(channels) or any(int(number) < 1 for number in channels):
        raise ValueError(f"guidance_input_channels must be one positive number per type: {types}, {channels}")
    return {name: int(number) for name, number in zip(types, channels, strict=True)}


def _person(rows: dict[str, tuple[Track, np.ndarray]]) -> tuple[float, float, float, float] | None:
    """Return the box of the key points of a clip, of all types together."""
    points = [values.reshape(-1, 1, 3) for track, values in rows.values() if track.kind.on_person]
    return person_box(np.concatenate(points)) if points else None


def collate_clips(items: Sequence[dict]) -> dict:
    """Return a batch of items: tensors (inside dicts too) stacked along a new first axis, ids in a list."""
    batch = {}
    for key, value in items[0].items():
        values = [item[key] for item in items]
        if isinstance(value, dict):
            batch[key] = {name: torch.stack([one[name] for one in values]) for name in value}
        else:
            batch[key] = torch.stack(values) if isinstance(value, torch.Tensor) else values
    return batch
