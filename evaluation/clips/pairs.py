"""Truth and prediction of a clip, paired by time and read in chunks: memory does not grow with the video.

A floor is a clip whose prediction is another source of frames, and everything that measures takes it as it
takes a prediction.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets import DataError, VideoReader
from datasets.report.page import count
from datasets.transforms import Size

from .sources import FrameSource, resized_to, video_source
from .truth import Truth

CHUNK_BYTES = 32 * 2**20  # of the frames of one video that are held at once
MOST_CHUNK_FRAMES = 64
SAME_ASPECT = 0.02  # of the ratio of the sides: encoders round sides to multiples of 16


@dataclass(frozen=True)
class Chunk:
    """Neighbouring frames of a clip. Each but a clip's first begins with the last frame of the one before.

    prediction, truth: uint8 [n, H, W, 3]; key_points: float [n, K, 3] or None; num_old: 0 or 1; first: the
    number of the first new frame.
    """

    prediction: np.ndarray
    truth: np.ndarray
    key_points: np.ndarray | None
    num_old: int
    first: int


@dataclass(frozen=True)
class ClipPair:
    """Frames of a prediction and of the truth that belong together. The first is at 0 seconds."""

    sample_id: str
    place: int
    prediction: FrameSource
    truth: FrameSource
    seconds: np.ndarray  # float64 [F]
    size: Size
    clip: Truth  # its frames are those of the pair
    borders: tuple[int, ...] | None = None  # frames at which a window of the sampler begins; None: not known
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        return len(self.seconds)

    @property
    def frame_rate(self) -> float:
        if len(self.seconds) < 2:
            return self.clip.video.frame_rate
        return float((len(self.seconds) - 1) / (self.seconds[-1] - self.seconds[0]))

    def with_prediction(self, source: FrameSource) -> "ClipPair":
        return dataclasses.replace(self, prediction=source)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the clip's frames in order. Raises DataError where a video cannot be decoded."""
        num_new = min(MOST_CHUNK_FRAMES, max(2, CHUNK_BYTES // (3 * self.size[0] * self.size[1])))
        points = self.clip.key_points
        frames = zip(self.prediction(), self.truth(), strict=True)
        last, first = [], 0
        while new := list(itertools.islice(frames, num_new)):
            prediction, truth = (np.stack(side) for side in zip(*last, *new, strict=True))
            end = first + len(new)
            of_chunk = None if points is None else points[first - len(last) : end]
            yield Chunk(prediction, truth, of_chunk, len(last), first)
            last, first = new[-1:], end


# ---- which frames belong together ----


def pair_by_time(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices of the prediction's frames, of the truth's), int64 [F] each, that belong together.

    prediction, truth: the frames' times in seconds, ascending. Both are counted from their first frame. Each
    frame of the video with fewer frames per second goes with the other's nearest in time, as far as both
    reach.
    """
    own, other = prediction - prediction[0], truth - truth[0]
    periods = [_period(times) for times in (own, other)]
    if periods[0] < periods[1] * (1 - 1e-6):
        of_truth, of_prediction = pair_by_time(truth, prediction)
        return of_prediction, of_truth
    end = other[-1] + periods[1] / 2  # the last frame is on screen for a period, too
    grid = np.flatnonzero(own <= end + 1e-9)
    nearest = np.searchsorted((other[1:] + other[:-1]) / 2, own[grid] - 1e-9)
    return grid, nearest.astype(np.int64)


def _period(seconds: np.ndarray) -> float:
    return float(seconds[-1] / (len(seconds) - 1)) if len(seconds) > 1 else np.inf


def pair_with_video(
    truth: Truth, path: Path, borders_of: Callable[[int], Sequence[int] | None] = lambda num_frames: None
) -> ClipPair:
    """Return the truth and a finished video, paired by time. Raises DataError where they do not fit.

    borders_of: number of the video's frames -> those of them at which a window of its sampler begins.
    """
    video = VideoReader(path)
    check_aspect(path, video.size, truth)
    own, others = pair_by_time(video.frame_seconds, truth.seconds)
    source = video_source(video, own, resized_to(truth.size))
    notes = []
    if video.size != truth.size:
        height, width = truth.size
        notes.append(f"{path}: {video.size[1]}x{video.size[0]}, resized to the truth's {width}x{height}")
    if len(own) < max(len(video), len(truth.frames)):
        lengths = f"{count(len(video), 'frame')} at {video.frame_rate:.4g} a second"
        of_truth = f"the truth {len(truth.frames)} at {rate_of(truth.seconds, truth.video):.4g}"
        notes.append(f"{path}: {lengths}, {of_truth}: {count(len(own), 'pair')} by time")
    borders = borders_of(len(video))
    borders = None if borders is None else np.searchsorted(own, borders).tolist()
    return paired(truth, source, others, borders=borders, notes=notes)


def check_aspect(path: Path, size: Size, truth: Truth) -> None:
    """Raise DataError for a prediction of another shape: stretched, it would be another picture."""
    ratio = size[0] / size[1] * truth.size[1] / truth.size[0]
    if abs(np.log(ratio)) > SAME_ASPECT + 1 / min(*size, *truth.size):
        problem = f"{size[1]}x{size[0]}, but the truth is {truth.size[1]}x{truth.size[0]}: another shape"
        fix = f"give --resolution {size[0]} {size[1]} (and --fit crop or pad), to which the truth is then cut"
        raise DataError(path, problem, fix)


def paired(
    truth: Truth, prediction: FrameSource, frames: np.ndarray | None = None, *,
    borders: Sequence[int] | None = None, notes: Sequence[str] = (),
) -> ClipPair:  # fmt: skip
    """Return the pair of a prediction and the frames of a truth (None: all) that it belongs to."""
    if frames is not None:
        guidance = {name: values[frames] for name, values in truth.guidance.items()}
        truth = dataclasses.replace(truth, frames=truth.frames[frames], guidance=guidance)
    if borders is not None:
        borders = tuple(border for border in borders if 0 < border < len(truth.frames))
    seconds = truth.seconds - truth.seconds[0]
    return ClipPair(
        truth.sample_id, truth.place, prediction, truth.source(), seconds, truth.size, truth,
        borders, tuple(notes),
    )  # fmt: skip


def rate_of(seconds: np.ndarray, video: VideoReader) -> float:
    """Return the frames per second of frames at these times; a single one has its video's."""
    return float((len(seconds) - 1) / (seconds[-1] - seconds[0])) if len(seconds) > 1 else video.frame_rate
