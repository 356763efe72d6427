"""What a stream says about how its frames are to be seen, and a decoded frame as a player shows it.

Shape of the pixels, rotation and mirroring, fields, colour matrix and range, transfer and primaries, alpha:
each is honoured, or a DataError that names it. A frame of the usual kind is converted as ever, to the bit.
"""

import contextlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from system.errors import DataError

from .colour import ColourConversion, to_bt709
from .containers import videos
from .sound import ffmpeg_reason

EXPORT_FIX = "export it as an ordinary video (SDR, BT.709) from the program or phone that made it"
SQUARE = 0.01  # pixels as nearly square as this come of rounding
UNSPECIFIED, UNSTATED = 2, (0, 2, 3)  # a matrix of 0 is that of RGB, which YUV frames are not
MATRICES = {0, 1, 2, 3, 4, 5, 6, 7, 9}  # that swscale knows, by H.273's codes
MATRIX_NAMES = {
    8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "SMPTE 2085", 12: "chromaticity-derived",
    13: "chromaticity-derived", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro",
}  # fmt: skip
SD_WIDTH, SD_HEIGHT = 1279, 576  # at most; a larger video that states no matrix has HD's, for most players

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Display:
    """How a video's frames become what is shown: scaled to square pixels, then turned."""

    stored: Size  # of decoded frames
    scaled: Size
    turn: tuple[bool, bool, bool]  # transposed, then rows reversed, columns reversed
    notes: tuple[str, ...] = ()  # what is unusual, for the user

    @property
    def size(self) -> Size:
        """(height, width) as shown."""
        return self.scaled[::-1] if self.turn[0] else self.scaled

    def turned(self, pixels: np.ndarray) -> np.ndarray:
        transposed, rows, columns = self.turn
        pixels = pixels.swapaxes(0, 1) if transposed else pixels
        return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def read_display(path: Path, container, stream, first: av.VideoFrame) -> Display:
    """Return how a stream is shown, by its first frame. Raises DataError for what cannot be honoured."""
    stored, turn, notes = (first.height, first.width), _turn(first), []
    if (num_streams := len(videos(container))) > 1:
        size = f"{first.width}x{first.height}"
        notes.append(f"{num_streams} video streams: the one that players show is read ({size})")
    ratio = float(stream.sample_aspect_ratio or 1)
    scaled = stored
    if ratio > 0 and abs(ratio - 1) > SQUARE:
        # Never fewer pixels than are stored.
        scaled = (stored[0], round(stored[1] * ratio)) if ratio > 1 else (round(stored[0] / ratio), stored[1])
        shape = "{}:{}".format(*Fraction(ratio).limit_denominator(1000).as_integer_ratio())
        shown = scaled[::-1] if turn[0] else scaled
        notes.append(f"pixel aspect ratio {shape}: shown as {shown[1]}x{shown[0]}")
    if first.interlaced_frame:
        notes.append("interlaced: deinterlaced frame by frame")
    if stream.metadata.get("alpha_mode") == "1" and not _has_alpha(first.format):
        notes.append(f"alpha channel of {stream.codec_context.name}: not read, all is taken as opaque")
    way = _way(path, first)
    notes += [way.conversion.note] if way.conversion else []
    notes += ["alpha channel: shown on black"] if way.has_alpha and not first.format.has_palette else []
    return Display(stored, scaled, turn, tuple(notes))


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return Display.turn by the frame's display matrix: x' = a x + c y, y' = b x + d y, y downwards."""
    with contextlib.suppress(KeyError, ValueError):  # ValueError: beside one of a kind unknown to PyAV
        a, b, _, c, d, *_ = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32).tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return True, b < 0, c < 0
        return False, d < 0, a < 0
    return {0: (False, False, False), 1: (True, True, False), 2: (False, True, True),
            3: (True, False, True)}[round(frame.rotation / 90) % 4]  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How decoded frames of one format and one set of codes become RGB."""

    format: str
    matrix: Colorspace | None  # None: the frame's own
    conversion: ColourConversion | None
    has_alpha: bool


class ShownFrames:
    """Decoded frames of one video as uint8 [H, W, 3], RGB, as a player shows them. For one reading of it."""

    def __init__(self, path: Path, display: Display) -> None:
        self.path, self.display = path, display
        self._to_rgb, self._kind, self._way = VideoReformatter(), None, None
        height, width = display.scaled
        scaled = {"width": width, "height": height, "interpolation": Interpolation.BICUBIC}
        self._scaling = scaled if display.scaled != display.stored else {}

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame's pixels. Raises DataError for what cannot be honoured."""
        if frame.interlaced_frame:
            frame = deinterlaced(frame)
        kind = (frame.format.name, frame.colorspace, frame.color_trc, frame.color_primaries)
        if kind != self._kind:
            self._kind, self._way = kind, _way(self.path, frame)
        way = self._way
        # One thread and one converter a read: PyAV's default starts threads for every frame, 60 times slower.
        try:
            pixels = self._to_rgb.reformat(
                frame, format=way.format, src_colorspace=way.matrix, threads=1, **self._scaling
            ).to_ndarray()
        except OSError as error:
            problem = f"pixel format {frame.format.name} cannot be shown ({ffmpeg_reason(error)})"
            raise DataError(self.path, problem, EXPORT_FIX) from error
        alpha = pixels[..., 3:] if way.has_alpha else None
        if way.conversion is not None:
            pixels = way.conversion(pixels[..., :3])
        if alpha is not None:
            pixels = _on_black(pixels[..., :3], alpha)
        return self.display.turned(pixels) if any(self.display.turn) else pixels


def _way(path: Path, frame: av.VideoFrame) -> Way:
    """Return the way of a frame. Raises DataError for colours that cannot be honoured."""
    if frame.colorspace not in MATRICES:
        name = MATRIX_NAMES.get(frame.colorspace, f"of code {frame.colorspace}")
        raise DataError(path, f"colour matrix {name} cannot be honoured", EXPORT_FIX)
    if frame.color_trc == UNSPECIFIED and _has_side_data(frame, "DOVI_METADATA"):
        problem = "Dolby Vision without an ordinary or HDR10 or HLG layer (profile 5) cannot be honoured"
        raise DataError(path, problem, EXPORT_FIX)
    try:
        conversion = to_bt709(frame.color_trc, frame.color_primaries)
    except KeyError:
        problem = f"primaries of code {frame.color_primaries} cannot be honoured"
        raise DataError(path, problem, EXPORT_FIX) from None
    matrix = None
    if frame.colorspace in UNSTATED and not frame.format.is_rgb:
        if conversion is not None and frame.color_primaries == 9:
            matrix = Colorspace.BT2020
        elif frame.width > SD_WIDTH or frame.height > SD_HEIGHT:
            matrix = Colorspace.ITU709
    has_alpha = _has_alpha(frame.format)
    formats = {(False, False): "rgb24", (False, True): "rgba", (True, False): "rgb48le"}
    return Way(formats.get((conversion is not None, has_alpha), "rgba64le"), matrix, conversion, has_alpha)


def _has_alpha(pixel_format: av.VideoFormat) -> bool:
    return pixel_format.has_palette or any(one.is_alpha for one in pixel_format.components)


def _has_side_data(frame: av.VideoFrame, name: str) -> bool:
    with contextlib.suppress(KeyError, ValueError):  # ValueError: as above
        return frame.side_data[name] is not None
    return False


def _on_black(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return RGB uint8 on black, as players have it; alpha: uint8 or uint16 [H, W, 1]."""
    most = np.iinfo(alpha.dtype).max
    if alpha.min() == most:
        return np.ascontiguousarray(pixels)
    return np.rint(pixels * (alpha / np.float32(most))).astype(np.uint8)


def deinterlaced(frame: av.VideoFrame) -> av.VideoFrame:
    """Return the frame with the lines of its second field drawn anew from those of the first.

    From the frame alone, so that a frame is the same however it is reached.
    """
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    graph.link_nodes(source, graph.add("estdif", "mode=frame"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    graph.vpush(None)
    return graph.vpull()
