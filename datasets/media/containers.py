"""Videos and music opened by PyAV, whatever bytes their titles are made of."""

from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from datasets.packed_files import is_packed, open_packed
from system.whole_files import check_ordinary

# PyAV 19 takes any bytes by itself and no longer knows the option.
OPTIONS = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


def open_container(path: Path) -> InputContainer:
    """Open a file for reading. Raises av.FFmpegError, OSError or DataError."""
    check_ordinary(path)
    return av.open(open_packed(path) if is_packed(path) else str(path), **OPTIONS)


def videos(container: InputContainer) -> list[VideoStream]:
    """Return the streams that are videos: a cover picture is none, nor are thumbnails."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


def main_video(container: InputContainer) -> VideoStream | None:
    """Return the stream that players show: of several, the one that is marked or larger; None: no video."""
    found = videos(container)
    best = container.streams.best("video") if len(found) > 1 else None
    return best if best in found else next(iter(found), None)
