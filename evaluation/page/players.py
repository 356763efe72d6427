"""The small videos that the page carries: reference, guidance, truth and prediction side by side, with sound.

They are for looking, not for measuring: small columns, a bounded bit rate, a bounded length. A page with all
its players so stays a few MB, however long and large the clips are.
"""

import functools
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from torch import Tensor

from datasets.media.video_writing import add_h264_stream, add_sound_stream, h264_frame
from datasets.report.images import webp
from evaluation.clips.pairs import ClipPair
from evaluation.clips.sources import FrameSource
from pipelines.panels import draw_guidance, make_panel
from system.errors import DataError

COLUMN_HEIGHT, COLUMN_WIDTH = 256, 224  # pixels, at most, of a column
MAX_SECONDS, MAX_FRAME_RATE = 12.0, 30.0
VIDEO_BIT_RATE, SOUND_BIT_RATE = 130_000, 64_000  # at most: about 4 MB of text for ten players of 12 s
BAR_LEVEL = 24  # grey, as behind the captions


Column = np.ndarray | Callable[[range], Iterable[np.ndarray]]


@dataclass
class PlayerSource:
    """What a player of a clip is made from.

    columns: {name: still image uint8 [H, W, 3], or what gives these frames of the clip}, from left to right.
    size: (height, width) of a frame. sound: a media file and its second at the clip's first frame.
    """

    frame_rate: float
    num_frames: int
    size: tuple[int, int]
    columns: dict[str, Column]
    sound: tuple[str | Path, float] | None = None


def source_of(pair: ClipPair) -> PlayerSource:
    """Return reference, guidance, truth and prediction of a clip, with the truth's sound."""
    clip, size = pair.clip, column_size(pair.size)
    columns: dict[str, Column] = {} if clip.reference is None else {"reference": clip.reference}
    for name, condition in clip.guidance.items():
        columns[name] = functools.partial(_drawn, condition, size, name)
    columns |= {
        "truth": functools.partial(_part, pair.truth),
        "prediction": functools.partial(_part, pair.prediction),
    }
    sound = (clip.video.path, float(clip.seconds[0])) if clip.video.has_audio else None
    return PlayerSource(pair.frame_rate, pair.num_frames, pair.size, columns, sound)


def _part(frames: FrameSource, shown: range) -> Iterator[np.ndarray]:
    return itertools.islice(frames(), shown.start, shown.stop, shown.step)


def _drawn(condition: Tensor, size: tuple[int, int], name: str, shown: range) -> np.ndarray:
    return draw_guidance(condition[shown.start : shown.stop : shown.step], size, name)


@dataclass
class Player:
    """An mp4 that shows a clip from start_seconds on; sizes are (height, width)."""

    video: bytes
    still: bytes  # its image of frame `still_frame`, for print
    still_frame: int
    columns: list[str]
    size: tuple[int, int]
    column_size: tuple[int, int]
    start_seconds: float
    seconds: float
    has_sound: bool
    is_part: bool  # of the clip


def make_player(source: PlayerSource, around: int = 0) -> Player:
    """Return the player of a clip; of one longer than MAX_SECONDS the part that has frame `around`."""
    shown = frames_shown(source.frame_rate, source.num_frames, around)
    still_frame = min(shown, key=lambda frame: abs(frame - around))
    rate = Fraction(source.frame_rate / shown.step).limit_denominator(1001)
    start, seconds = shown.start / source.frame_rate, float(len(shown) / rate)
    limits = {"crf": "28", "maxrate": str(VIDEO_BIT_RATE), "bufsize": str(2 * VIDEO_BIT_RATE)}
    buffer, to_yuv = io.BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="mp4") as output:
        for place, (frame, panel) in enumerate(zip(shown, panels(source, shown), strict=True)):
            if place == 0:
                video = add_h264_stream(output, panel.shape[:2], rate, 1 / rate, options=limits)
                has_sound = _add_sound(output, source.sound, start, seconds)
            if frame == still_frame:
                still = webp(panel)
            output.mux(video.encode(h264_frame(panel, to_yuv, place, 1 / rate)))
        output.mux(video.encode())
    size = column_size(source.size)
    return Player(
        buffer.getvalue(), still, still_frame, list(source.columns), panel.shape[:2], size, start, seconds,
        has_sound, is_part=len(shown) * shown.step < source.num_frames,
    )  # fmt: skip


def panels(source: PlayerSource, shown: range) -> Iterator[np.ndarray]:
    """Yield the columns of each frame side by side, uint8 [H, W, 3]."""
    size = column_size(source.size)
    stills = {name: _fitted(one, size) for name, one in source.columns.items() if isinstance(one, np.ndarray)}
    moving = [iter(column(shown)) for column in source.columns.values() if callable(column)]
    for frames in zip(*moving, strict=True):
        left = iter(frames)
        columns = [stills[name] if name in stills else _fitted(next(left), size) for name in source.columns]
        yield make_panel(columns, list(source.columns))[0]


def frames_shown(frame_rate: float, num_frames: int, around: int = 0) -> range:
    """Return the frames in a player: at most MAX_SECONDS with `around` in the middle, if the clip is longer.

    Of more than MAX_FRAME_RATE frames a second every n-th one.
    """
    count = min(num_frames, max(1, int(MAX_SECONDS * frame_rate)))
    first = min(max(0, around - count // 2), num_frames - count)
    return range(first, first + count, max(1, -int(-frame_rate // MAX_FRAME_RATE)))


def _add_sound(output, sound: tuple[str | Path, float] | None, start: float, seconds: float) -> bool:
    """Add the sound of a player's part; return whether there is any."""
    if sound is None:
        return False
    try:
        add_sound_stream(output, Path(sound[0]), sound[1] + start, seconds, bit_rate=SOUND_BIT_RATE)
    except DataError:  # a video without sound, or without any there
        return False
    return True


def column_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of a player's column for frames of a size; small ones stay as they are."""
    height, width = size
    scale = min(1.0, COLUMN_HEIGHT / height, COLUMN_WIDTH / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image of that size, with bars beside one of another shape."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (
        min(room, max(1, round(side * scale))) for room, side in zip(size, image.shape[:2], strict=True)
    )
    if (height, width) != image.shape[:2]:
        image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    bars = (top, size[0] - height - top), (left, size[1] - width - left), (0, 0)
    return np.pad(image, bars, constant_values=BAR_LEVEL)
