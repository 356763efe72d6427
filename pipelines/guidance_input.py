"""Guidance for sampling: files to the conditions of one clip, aligned by time and fitted to its frames.

Training reads guidance along a video; here there is none, so the clip's times come from a stated frame rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from datasets import DataError
from datasets.guidance.track import Track
from datasets.guidance.tracks import read_rows
from datasets.transforms import ClipTransform, Size, make_transform, person_box

LENGTH_TOLERANCE = 0.25  # seconds; feature extractors round the end of the music either way


@dataclass(frozen=True)
class Timeline:
    """When the frames of a clip are: frame j is at (start_frame + j * frame_stride) / frame_rate seconds.

    num_frames: None, as many as the guidance has.
    """

    frame_rate: float
    start_frame: int = 0
    frame_stride: int = 1
    num_frames: int | None = None

    @property
    def start_seconds(self) -> float:
        return self.start_frame / self.frame_rate

    @property
    def clip_frame_rate(self) -> float:
        return self.frame_rate / self.frame_stride

    def frames_of(self, track: Track) -> int:
        """Return how many frames of the clip a track reaches."""
        rate = self.frame_rate if track.fps is None else track.fps
        length = track.num_rows * self.frame_rate / rate  # in frames of the video
        return max(0, int(np.ceil((length - self.start_frame) / self.frame_stride - 1e-6)))

    def rows_of(self, track: Track, num_frames: int) -> np.ndarray:
        """Return the row of each frame, int64 [num_frames]: the same number, or the nearest in time."""
        frames = self.start_frame + self.frame_stride * np.arange(num_frames)
        if track.fps is None:
            return frames
        nearest = np.floor(frames / self.frame_rate * track.fps + 0.5).astype(int)
        return np.minimum(nearest, track.num_rows - 1)


@dataclass(frozen=True)
class Framing:
    """How guidance is fitted to the frames of a clip; sizes are (height, width).

    source_size: of the video that key points and maps come from; None: what a map or a pose file tells, else
    fallback_size.
    """

    output_size: Size
    source_size: Size | None
    fallback_size: Size
    fit: str = "auto"


def count_frames(tracks: Sequence[Track], timeline: Timeline) -> int:
    """Return the clip's length. Raises DataError when the tracks do not reach so far, or not equally far."""
    counts = {track.type_name: timeline.frames_of(track) for track in tracks}
    shortest = min(tracks, key=lambda track: counts[track.type_name])
    available, longest = counts[shortest.type_name], max(counts, key=counts.get)
    wanted = timeline.num_frames
    if available < (wanted or 1):
        problem = f"{shortest.num_rows} rows of {shortest.type_name} give {available} frames"
        asked = f"{wanted or 1} asked for from frame {timeline.start_frame} on, {timeline.frame_stride} apart"
        fix = "choose a smaller --num_frames or --start_frame"
        raise DataError(shortest.path, f"{problem}, {asked}", fix)
    if wanted is not None:
        return wanted
    has_own_rate = any(track.fps is not None for track in tracks)
    tolerance = LENGTH_TOLERANCE * timeline.clip_frame_rate if has_own_rate else 0
    if counts[longest] - available > tolerance:
        problem = f"{shortest.type_name} gives {available} frames, {longest} gives {counts[longest]}"
        fix = f"--num_frames {available} samples what they share, if both begin at the same time"
        raise DataError(shortest.path, problem, f"{fix}; music of another rate needs --music_feature_fps")
    return available


@dataclass(frozen=True)
class MapSource:
    """A long clip's maps, read when they are asked for: `source[start:stop]` is float [n, C, h, w]."""

    track: Track
    rows: np.ndarray
    transform: ClipTransform
    frame_size: Size | None
    shape: tuple[int, ...]  # [F, C, h, w]

    def __getitem__(self, frames: slice) -> Tensor:
        values = read_rows(self.track, self.rows[frames], self.shape[1])
        return self.track.kind.fit(self.track, values, self.transform, self.frame_size)


def read_conditions(
    tracks: Sequence[Track], channels: dict[str, int], timeline: Timeline, framing: Framing,
    most_bytes: int | None = None,
) -> tuple[dict[str, Tensor | MapSource], bool]:  # fmt: skip
    """Return ({type: [F, ...]} as in a training batch, whether fallback_size was taken).

    Key points and maps are fitted to the frames by one transform. channels: {type: number that the model was
    trained with}. most_bytes: maps that take more come as a MapSource. Raises DataError for every fault of
    the files, a MapSource when it comes to it.
    """
    for track in tracks:
        track.kind.check_layout(track, channels[track.type_name])  # before its rows are counted
    num_frames = count_frames(tracks, timeline)
    values, sizes, later = {}, [], {}
    for track in tracks:
        rows, width = timeline.rows_of(track, num_frames), channels[track.type_name]
        try:
            if most_bytes is not None and _is_large(track, rows, width, most_bytes):
                later[track.type_name], rows = rows, rows[:1]
            values[track.type_name], size = _read_track(track, rows, width, framing)
        except DataError as error:
            if "--guidance_input_channels" not in error.fix:
                raise
            trained = f"the model was trained with {channels[track.type_name]} of {track.type_name}"
            raise DataError(error.path, error.problem, f"{trained}: extract it in the same way") from error
        sizes += [size] if size else []
    known_size = framing.source_size or next(iter(sizes), None)
    points = [values[track.type_name] for track in tracks if track.kind.on_person]
    person = person_box(np.concatenate(points, axis=1)) if points else None  # a crop keeps the person
    source_size = known_size or framing.fallback_size
    transform = make_transform(source_size, framing.output_size, fit=framing.fit, person=person)
    fitted = [track.kind.fit(track, values[track.type_name], transform, known_size) for track in tracks]
    for place, track in enumerate(tracks):
        if track.type_name in later:
            shape = (num_frames, *fitted[place].shape[1:])
            fitted[place] = MapSource(track, later[track.type_name], transform, known_size, shape)
    is_assumed = known_size is None and any(track.kind.in_frame for track in tracks)
    return dict(zip(values, fitted, strict=True)), is_assumed


def _is_large(track: Track, rows: np.ndarray, num_channels: int, most_bytes: int) -> bool:
    """Return whether a track is maps that take more memory than most_bytes."""
    if track.kind.on_person:
        return False
    first = read_rows(track, rows[:1], num_channels)
    return track.kind.is_map(track, first.shape[1:]) and first.nbytes * len(rows) > most_bytes


def _read_track(track: Track, rows: np.ndarray, num_channels: int, framing: Framing):
    """Return (values [F, ...] of the source frame, size of the source frame where it is known)."""
    size = (framing.source_size or track.kind.stated_size(track, ())) if track.kind.on_person else None
    values = read_rows(track, rows, num_channels, size)
    return values, size or track.kind.stated_size(track, values.shape[1:])
