"""Tiny videos that say something unusual about how they are to be seen."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

LOSSLESS = {"crf": "0"}


@pytest.fixture(scope="session")
def write_tagged() -> Callable[..., Path]:
    """write_tagged(path, frames, ...): av frames or RGB arrays under these codes (H.273) and pixel shape."""

    def write(
        path: Path, frames: Sequence, *, codec="libx264", pix_fmt="yuv444p", options=LOSSLESS,
        matrix=1, full_range=False, transfer=2, primaries=2, shape=None,
    ) -> Path:  # fmt: skip
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=12, options=options)
            codes = {"colorspace": matrix, "color_range": 1 + full_range, "color_trc": transfer,
                     "color_primaries": primaries}  # fmt: skip
            for number, frame in enumerate(frames):
                if not isinstance(frame, av.VideoFrame):
                    rgb = av.VideoFrame.from_ndarray(frame, format="rgb24")
                    frame = rgb.reformat(format=pix_fmt, dst_colorspace=matrix if matrix in (1, 5, 9) else 5,
                                         dst_color_range=1 + full_range)  # fmt: skip
                for name, code in codes.items():
                    setattr(frame, name, code)
                    setattr(stream.codec_context, name, code)
                if number == 0:
                    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                    if shape:
                        stream.codec_context.sample_aspect_ratio = Fraction(*shape)
                frame.pts, frame.time_base = number, Fraction(1, 12)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def filtered() -> Callable[..., np.ndarray]:
    """filtered(frame, pix_fmt, (filter, arguments), ...): what FFmpeg's filters make of an av frame."""

    def run(frame: av.VideoFrame, pix_fmt: str, *filters: tuple[str, str]) -> np.ndarray:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 12)
        )
        nodes = [graph.add(*one) for one in (*filters, ("format", pix_fmt))]
        graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
        graph.vpush(frame)
        graph.vpush(None)
        return graph.vpull().to_ndarray()

    return run


@pytest.fixture(scope="session")
def first_frame() -> Callable[[Path], av.VideoFrame]:
    """first_frame(path): as decoded, before anything is converted."""

    def decode(path: Path) -> av.VideoFrame:
        with av.open(str(path)) as container:
            return next(container.decode(video=0))

    return decode
