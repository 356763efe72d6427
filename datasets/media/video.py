"""Videos by presentation time: which frame is on screen when, and exactly that frame's pixels.

Frame k is the k-th frame that a player shows. Its time comes from the file's own time stamps, so variable
frame rates, edit lists and late starts need no special care elsewhere. Files are opened for each read and
closed again: nothing here holds a handle, so readers travel to data-loading workers.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from datasets.packed_files import is_file, size_of
from system.errors import DataError
from system.whole_files import check_ordinary

from .containers import main_video, open_container
from .display import Display, ShownFrames, read_display
from .sound import ffmpeg_reason, sound_stream, time_zero

BROKEN_FIX = "replace the file, or re-encode it with: ffmpeg -i IN -c:v libx264 -g 12 OUT.mp4"
SEEK_GAIN = 8  # frames; a seek costs as much as decoding a few frames, so nearer ones are decoded through
CUT_OFF_SECONDS = 1.0


@dataclass(frozen=True)
class FrameTable:
    """What one pass over a file's packets tells, in presentation order."""

    pts: np.ndarray  # int64 [N], ascending, in units of time_base; 0..N-1 where frames are found by counting
    seconds: np.ndarray  # float64 [N]
    key_pts: np.ndarray  # int64 [M], ascending; empty where only decoding from the start finds a frame
    key_dts: np.ndarray  # int64 [M]
    display: Display
    frame_rate: float
    has_audio: bool

    @property
    def nbytes(self) -> int:
        return self.pts.nbytes + self.seconds.nbytes + self.key_pts.nbytes + self.key_dts.nbytes


class VideoReader:
    """Frames of one video file.

    Raises DataError when the file cannot be read, and from read() when a frame cannot be decoded.
    """

    def __init__(self, path: str | Path, table: FrameTable | None = None) -> None:
        self.path = Path(path)
        self.table = table if table is not None else read_frame_table(self.path)
        # Presentation times, float64 [N], on the file's own time line (that of its sound too).
        self.frame_seconds = self.table.seconds
        self.size = self.table.display.size  # (height, width) as shown
        self.notes = self.table.display.notes  # what is unusual about it, for the user
        self.frame_rate, self.has_audio = self.table.frame_rate, self.table.has_audio

    def __len__(self) -> int:
        return len(self.table.pts)

    def read(
        self, indices: Sequence[int] | np.ndarray, change: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> np.ndarray:
        """Return frames uint8 [F, H, W, 3], RGB, in the order asked for; an index may repeat.

        change: done to each frame once it is decoded, so that no more than one is held at its full size.
        """
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(indices) == 0 or indices.min() < 0 or indices.max() >= len(self):
            raise IndexError(f"{self.path}: frames {indices.tolist()} asked for, it has {len(self)}")
        wanted = np.unique(indices)
        found: dict[int, np.ndarray] = {}
        if len(self.table.key_pts):
            self._collect(found, self._decode_by_seeking(wanted.tolist()), wanted, change)
        if len(found) < len(wanted):  # a damaged or oddly indexed file: slow, but sure
            self._collect(found, self._decode_from_start(), wanted, change)
        for index in wanted:
            if int(index) not in found:
                raise self._undecodable(int(index))
        return np.stack([found[int(index)] for index in indices])

    def iterate(self) -> Iterator[np.ndarray]:
        """Yield all frames in order, uint8 [H, W, 3]. Raises DataError for the first undecodable one."""
        shown = ShownFrames(self.path, self.table.display)
        for frame in self._decode_all():
            yield shown(frame)

    def decode_all(self) -> None:
        """Decode every frame and keep none. Raises DataError for the first undecodable one."""
        for _ in self._decode_all():
            pass

    def _decode_all(self) -> Iterator[av.VideoFrame]:
        expected = 0
        for index, frame in self._decode_from_start():
            if index != expected:
                break
            yield frame
            expected += 1
        if expected < len(self):
            raise self._undecodable(expected)

    def _undecodable(self, index: int) -> DataError:
        when = f"frame {index} (at {self.frame_seconds[index]:.3f} s of {self.frame_seconds[-1]:.3f} s)"
        return DataError(self.path, f"{when} cannot be decoded, the file is damaged or cut off", BROKEN_FIX)

    def _collect(self, found: dict, frames: Iterator, wanted: np.ndarray, change: Callable | None) -> None:
        missing = set(wanted.tolist()) - set(found)
        shown = ShownFrames(self.path, self.table.display)
        for index, frame in frames:
            if index in missing:
                pixels = shown(frame)
                found[index] = pixels if change is None else change(pixels)
                missing.remove(index)
                if not missing:
                    return

    def _decode_by_seeking(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) from the key frame before each wanted frame; end early where seeking fails."""
        keys = np.searchsorted(self.table.key_pts, self.table.pts[wanted], side="right") - 1
        key_frames = np.searchsorted(self.table.pts, self.table.key_pts)
        position = 0
        with _open_video(self.path) as (container, stream):
            while position < len(wanted) and keys[position] >= 0:
                for index, frame in self._from_key(container, stream, keys[position], wanted[position:]):
                    yield index, frame
                    if index < wanted[position]:
                        continue
                    if index > wanted[position]:
                        return  # this frame was lost
                    position += 1
                    if position == len(wanted) or key_frames[keys[position]] > index + SEEK_GAIN:
                        break
                else:
                    return

    def _from_key(self, container, stream, key: int, wanted: list[int]) -> Iterator:
        """Yield (index, frame) from a key frame on; nothing where seeking only gets past the first wanted."""
        for stamp in (self.table.key_pts[key], self.table.key_dts[key]):  # containers differ
            try:
                container.seek(int(stamp), stream=stream, backward=True)
            except av.FFmpegError:  # a damaged index
                continue
            frames = self._indexed(container, stream, set(self.table.pts[wanted].tolist()))
            first = next(frames, None)
            if first is not None and first[0] <= wanted[0]:
                yield first
                yield from frames
                return

    def _decode_from_start(self) -> Iterator[tuple[int, av.VideoFrame]]:
        with _open_video(self.path) as (container, stream):
            yield from self._indexed(container, stream)

    def _indexed(self, container, stream, wanted_pts: set[int] | None = None) -> Iterator:
        """Yield (index, frame); damaged frames are left out, an undecodable packet ends it.

        With wanted_pts, other frames that no frame refers to are not decoded at all: many, with B-frames.
        """
        by_count, count = not len(self.table.key_pts), 0
        try:
            for packet in container.demux(stream):
                if wanted_pts is not None:
                    is_wanted = packet.pts is None or packet.pts in wanted_pts
                    stream.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
                for frame in packet.decode():
                    index = count if by_count else int(np.searchsorted(self.table.pts, frame.pts))
                    known = index < len(self) and (by_count or self.table.pts[index] == frame.pts)
                    count += 1
                    if known and not frame.is_corrupt:
                        self._check_size(index, frame)
                        yield index, frame
        except av.FFmpegError:
            return

    def _check_size(self, index: int, frame: av.VideoFrame) -> None:
        if (frame.height, frame.width) != self.table.display.stored:
            height, width = self.table.display.stored
            problem = (
                f"frame {index} is stored as {frame.width}x{frame.height}, those before as {width}x{height}"
            )
            raise DataError(self.path, problem, "cut the video in two where its size changes")


@contextlib.contextmanager
def _open_video(path: Path) -> Iterator[tuple]:
    """Yield (container, video stream) of a file. Raises DataError when there is none."""
    if not is_file(path):
        check_ordinary(path)
        problem = "is a folder, not a video file" if path.is_dir() else "no such video file"
        raise DataError(path, problem, "check the path")
    try:
        container = open_container(path)
    except (av.FFmpegError, OSError) as error:
        raise DataError(path, f"is not a readable video ({ffmpeg_reason(error)})", BROKEN_FIX) from error
    with container:
        stream = main_video(container)
        if stream is None or stream.codec_context is None:
            problem = "has no video stream" if stream is None else "its video codec is unknown"
            raise DataError(path, problem, BROKEN_FIX)
        stream.codec_context.thread_count = 1  # data-loading workers are the parallelism
        yield container, stream


def read_frame_table(path: str | Path) -> FrameTable:
    """Return the frame table of a video file. Raises DataError when it is unreadable, cut off or empty.

    Reads packets, not pixels, except where packets do not tell the time (AVI stores none, some streams lack
    or repeat them): those files are decoded once from start to end.
    """
    path = Path(path)
    with _open_video(path) as (container, stream):
        _check_whole(path, stream)
        first = _first_frame(path, container, stream)
        display = read_display(path, container, stream, first)
        has_audio = sound_stream(container) is not None
        time_base, rate = stream.time_base, stream.average_rate
        start, stated_end = time_zero(container), _stated_end(stream)
        packets = None if container.format.name == "avi" else _packet_times(path, container, stream)
    if packets is None:
        pts, seconds, keys = *_decoded_times(path, time_base, rate), np.zeros((2, 0), np.int64)
    else:
        pts, keys = packets
        seconds = pts * float(time_base)
    seconds = seconds - start
    if stated_end > seconds[-1] + CUT_OFF_SECONDS:
        problem = f"is cut off: its frames end at {seconds[-1]:.2f} s of {stated_end:.2f} s"
        raise DataError(path, problem, BROKEN_FIX)
    if len(pts) > 1:
        frame_rate = float((len(pts) - 1) / (seconds[-1] - seconds[0]))
    else:
        frame_rate = float(rate or 1)
    return FrameTable(pts, seconds, keys[0], keys[1], display, frame_rate, has_audio)


def _stated_end(stream) -> float:
    """Return the seconds at which Matroska's stream ends by its own word, 0 where it says nothing.

    A Matroska file that is cut off reads like a shorter one; in an mp4 the missing packets are noticed.
    """
    hours, minutes, seconds = (stream.metadata.get("DURATION", "0:0:0").split(":") + ["0", "0"])[:3]
    try:
        return 3600 * float(hours) + 60 * float(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _check_whole(path: Path, stream) -> None:
    """Raise DataError when the file ends before a packet that its index knows of.

    An mp4 that lost its end at a packet's border reads like a shorter one.
    """
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    size = size_of(path)
    if end > size:
        raise DataError(path, f"is cut off: {size:,} bytes of {end:,} or more", BROKEN_FIX)


def _first_frame(path: Path, container, stream) -> av.VideoFrame:
    try:
        for frame in container.decode(stream):
            return frame
    except av.FFmpegError as error:
        problem = f"its first frame cannot be decoded ({ffmpeg_reason(error)})"
        raise DataError(path, problem, BROKEN_FIX) from error
    raise DataError(path, "has no frames", BROKEN_FIX)


def _packet_times(path: Path, container, stream) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (pts int64 [N], key frames' pts and dts int64 [2, M]) of the frames shown; None: decode them."""
    shown, keys = [], []
    try:
        container.seek(0)  # behind the first frame, which has been decoded
        for packet in container.demux(stream):
            if packet.size == 0:  # the end
                continue
            if packet.is_corrupt:
                raise DataError(path, f"is cut off or damaged after {len(shown)} frames", BROKEN_FIX)
            if packet.is_keyframe and packet.pts is not None:  # one that an edit list hides is still a way in
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if not packet.is_discard:
                shown.append(packet.pts)
    except av.FFmpegError as error:
        problem = f"is cut off or damaged after {len(shown)} frames ({ffmpeg_reason(error)})"
        raise DataError(path, problem, BROKEN_FIX) from error
    if not keys or None in shown or len(set(shown)) < len(shown):
        return None
    return np.sort(np.array(shown, np.int64)), np.array(sorted(keys), np.int64).T


def _decoded_times(path: Path, time_base: Fraction, rate: Fraction | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (0..N-1, seconds [N]) by decoding the whole file."""
    stamps = []
    with _open_video(path) as (container, stream):
        counted = container.format.name == "avi"
        try:
            stamps = [frame.pts for frame in container.decode(stream)]
        except av.FFmpegError as error:
            problem = f"cannot be decoded to its end ({ffmpeg_reason(error)})"
            raise DataError(path, problem, BROKEN_FIX) from error
    if not stamps:
        raise DataError(path, "has no frames", BROKEN_FIX)
    numbers = np.arange(len(stamps), dtype=np.int64)
    if counted or None in stamps or np.any(np.diff(stamps) < 0):
        if not rate:
            raise DataError(path, "states neither frame times nor a frame rate", BROKEN_FIX)
        return numbers, numbers / float(rate)
    return numbers, np.array(stamps, np.int64) * float(time_base)
