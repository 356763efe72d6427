"""The sound of media files, cut by time."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer

from datasets.packed_files import is_file
from system.errors import DataError

from .containers import open_container

STAMP_TOLERANCE_SECONDS = 0.02  # less than half a frame of a 24-a-second video


def read_audio(path: str | Path, start_seconds: float, duration_seconds: float) -> tuple[np.ndarray, int]:
    """Return (sound float32 [1 or 2 channels, N], its rate: 44,100 or 48,000 Hz) of a part of a media file.

    Times are those of the file's frames. Silence stands before the sound's start and where some of it is
    missing; past its end the result is shorter.
    Raises DataError when the file has no sound there.
    """
    path = Path(path)
    if not is_file(path):
        raise DataError(path, "no such sound file", "check the path")
    try:
        with open_container(path) as container:
            stream = sound_stream(container)
            if stream is None:
                codec = " that can be read: its codec is unknown" if container.streams.audio else ""
                raise DataError(path, f"has no sound{codec}", "give a file with sound, or none")
            return _cut_audio(path, stream, start_seconds, duration_seconds)
    except (av.FFmpegError, OSError) as error:
        problem = f"its sound cannot be read ({ffmpeg_reason(error)})"
        raise DataError(path, problem, "replace the file") from error


def sound_stream(container: InputContainer) -> AudioStream | None:
    """Return the first sound that can be decoded: phones may add one that only they can (spatial audio)."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def _cut_audio(path: Path, stream: AudioStream, start_seconds: float, duration_seconds: float) -> tuple:
    container = stream.container
    sample_rate = 44_100 if stream.rate % 11_025 == 0 else 48_000
    layout = "mono" if stream.codec_context.layout.nb_channels == 1 else "stereo"
    length = round(duration_seconds * sample_rate)
    sound = np.zeros((1 if layout == "mono" else 2, length), np.float32)
    zero = time_zero(container)
    end = None  # of the sound so far, in samples from the part's start
    for begin_seconds, frames in itertools.groupby(container.decode(stream), _StretchBegin()):
        if zero is None:
            zero = begin_seconds
        position = round((begin_seconds - zero - start_seconds) * sample_rate)
        if end is None and position >= length:
            break
        for block in _resampled(frames, layout, sample_rate):
            first, last = max(0, -position), min(block.shape[1], length - position)
            if first < last:
                sound[:, position + first : position + last] = block[:, first:last]
            position += block.shape[1]
            if position >= length:
                return sound, sample_rate
        end = position
    if end is None or end <= 0:
        raise DataError(path, f"has no sound at {start_seconds:.2f} s", "choose another start")
    return sound[:, :end], sample_rate


class _StretchBegin:
    """A frame of sound -> the second at which its stretch begins: the key that groups frames into stretches.

    Within a stretch samples are counted, as containers round the stamps of single frames. Where the stamps
    leave the count for good, sound is missing (or there twice), and a new stretch begins.
    """

    def __init__(self) -> None:
        self.begin_seconds, self.counted_seconds = 0.0, None

    def __call__(self, frame: av.AudioFrame) -> float:
        counted = self.counted_seconds
        stamped = frame.time if frame.time is not None else counted or 0.0
        if counted is None or abs(stamped - counted) > STAMP_TOLERANCE_SECONDS:
            self.begin_seconds = counted = stamped
        self.counted_seconds = counted + frame.samples / frame.sample_rate
        return self.begin_seconds


def _resampled(frames: Iterable[av.AudioFrame], layout: str, sample_rate: int) -> Iterator[np.ndarray]:
    """Yield one stretch of sound, float32 [channels, n] at a time."""
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=sample_rate)
    for frame in itertools.chain(frames, [None]):  # None: the resampler's last samples
        if frame is not None:
            frame.pts = None
        for block in resampler.resample(frame):
            yield block.to_ndarray()


def time_zero(container) -> float | None:
    """Return what to take off a file's time stamps, in seconds; None: the stamp of its first sample.

    A transport stream's stamps begin anywhere, other videos' at 0. Files of sound alone have their first
    sample at 0 for whatever else reads them; ffmpeg stamps that of an mp3 25 ms late.
    """
    has_video = any(not s.disposition & s.disposition.attached_pic for s in container.streams.video)
    if not has_video:
        return None
    if "mpegts" not in container.format.name:
        return 0.0
    streams = (*container.streams.video, *container.streams.audio)
    return float(min((s.start_time * s.time_base for s in streams if s.start_time is not None), default=0))


def ffmpeg_reason(error: Exception) -> str:
    """Return what ffmpeg says, without PyAV's additions."""
    return getattr(error, "strerror", None) or str(error)
