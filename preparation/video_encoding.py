"""The re-encoded video: h264 with short key-frame distances, the source's frame times, its sound in step."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from datasets.media.containers import main_video, open_container
from datasets.media.tags import append_xmp, set_tags
from datasets.media.video_writing import add_h264_stream, add_sound_stream, h264_frame

KEY_FRAME_DISTANCE = 12  # frames; reading a random clip decodes half of it for nothing
FALLBACK_TIME_BASE = Fraction(1, 90_000)
MAX_TICKS_PER_SECOND = 1_000_000


def output_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """Return (height, width), even for h264: the shorter side scaled down to resolution (0: as it is)."""
    scale = min(1.0, resolution / min(size)) if resolution else 1.0
    height, width = (max(2, 2 * round(side * scale / 2)) for side in size)
    return min(height, size[0] - size[0] % 2), min(width, size[1] - size[1] % 2)


def scale_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the frame uint8 [H, W, 3] at (height, width), which is not larger."""
    return frame if frame.shape[:2] == size else cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)


def stream_time_base(path: Path) -> Fraction:
    """Return ticks in which a video's frame times are whole numbers, so that they can be kept exactly."""
    with open_container(path) as container:
        ticks = main_video(container).time_base
    if not ticks or ticks.denominator > MAX_TICKS_PER_SECOND:
        return FALLBACK_TIME_BASE
    return Fraction(1, ticks.denominator)


class VideoEncoder:
    """Context that writes an mp4 frame by frame; the sound goes in first.

    rate is stated in the file, for players; frames are shown at the times they are written with. tags: as of
    `datasets.write_video`.
    """

    options, num_threads = {"g": str(KEY_FRAME_DISTANCE)}, 1  # worker processes are the parallelism

    def __init__(
        self, path: Path, size: tuple[int, int], *, rate: float, time_base: Fraction,
        tags: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._path, self._size, self._time_base, self._rate = path, size, time_base, rate
        self._tags = tags
        self._to_yuv, self._last_pts = VideoReformatter(), -1

    def __enter__(self) -> Self:
        self._output = av.open(str(self._path), "w", format="mp4", options={"movflags": "faststart"})
        set_tags(self._output, self._tags)
        rate = Fraction(self._rate).limit_denominator(1001)
        self._stream = add_h264_stream(self._output, self._size, rate, self._time_base, options=self.options)
        self._stream.codec_context.thread_count = self.num_threads
        return self

    def __exit__(self, exception_type, *_) -> None:
        try:
            if exception_type is None:
                self._output.mux(self._stream.encode())
        finally:
            self._output.close()
        if exception_type is None:
            append_xmp(self._path, self._tags)

    def add_sound(self, path: Path, start_seconds: float, duration_seconds: float) -> None:
        """Add the sound of any media file; its second start_seconds is heard at the video's second 0."""
        add_sound_stream(self._output, path, start_seconds, duration_seconds)

    def write(self, frame: np.ndarray, seconds: float) -> None:
        """Write a frame, uint8 [H, W, 3] of the encoder's size, shown at `seconds`."""
        # Some containers show two frames at one time; an encoder wants the second a tick later.
        self._last_pts = pts = max(round(Fraction(seconds) / self._time_base), self._last_pts + 1)
        self._output.mux(self._stream.encode(h264_frame(frame, self._to_yuv, pts, self._time_base)))
