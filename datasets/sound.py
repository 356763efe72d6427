"""The sound of media files, cut by time."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np

from .errors import DataError


def read_audio(path: str | Path, start_seconds: float, duration_seconds: float) -> tuple[np.ndarray, int]:
    """(sound float32 [1 or 2 channels, N] at 44,100 or 48,000 Hz, sample rate) of a part of a media file.

    Silence stands where the part lies before the sound's start; past its end the result is shorter.
    Raises DataError when the file has no sound there.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "no such sound file", "check the path")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                raise DataError(path, "has no sound", "give a file with sound, or none")
            return _cut_audio(path, container, start_seconds, duration_seconds)
    except (av.FFmpegError, OSError) as error:
        raise DataError(
            path, f"its sound cannot be read ({ffmpeg_reason(error)})", "replace the file"
        ) from error


def _cut_audio(path: Path, container, start_seconds: float, duration_seconds: float) -> tuple:
    stream = container.streams.audio[0]
    sample_rate = 44_100 if stream.rate % 11_025 == 0 else 48_000
    layout = "mono" if stream.codec_context.layout.nb_channels == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=sample_rate)
    blocks, begin, count = [], None, 0
    length = round(duration_seconds * sample_rate)
    for frame in itertools.chain(container.decode(stream), [None]):  # None: the resampler's last samples
        if begin is None and frame is not None:  # index of the stretch's first sample in the decoded sound
            begin = round((start_seconds - (frame.time or 0.0) + time_zero(container)) * sample_rate)
        if frame is not None:
            frame.pts = None  # counted, not stamped: containers round the stamps of single sound frames
        for block in resampler.resample(frame):
            blocks.append(block.to_ndarray()[:, max(0, begin - count) :])
            count += block.samples
        if begin is not None and count >= begin + length:
            break
    sound = np.concatenate(blocks, axis=1) if blocks else np.zeros((1, 0), np.float32)
    if sound.shape[1] == 0 or -begin >= length:
        raise DataError(path, f"has no sound at {start_seconds:.2f} s", "choose another start")
    return np.pad(sound, ((0, 0), (max(0, -begin), 0)))[:, :length], sample_rate


def time_zero(container) -> float:
    """Seconds to take off a file's time stamps: a transport stream's begin anywhere, others' at 0."""
    if "mpegts" not in container.format.name:
        return 0.0
    return float(min(s.start_time * s.time_base for s in container.streams if s.start_time is not None))


def ffmpeg_reason(error: Exception) -> str:
    """What ffmpeg says, without PyAV's additions."""
    return getattr(error, "strerror", None) or str(error)
