"""Shape of pixels, mirroring, fields, matrix and range, streams, alpha: each read as a player shows it."""

import struct
import types
from fractions import Fraction

import av
import numpy as np
import pytest

from datasets import DataError, VideoReader, write_video
from datasets.media.display import Display, ShownFrames
from preparation.sources import estimate_frames
from preparation.video_encoding import stream_time_base

COLOURS = np.array(
    [[200, 30, 30], [30, 200, 30], [30, 30, 200], [235, 235, 235], [20, 20, 20], [180, 120, 90]]
)


def painted(height=48, width=96, colours=COLOURS):
    """uint8 [height, width, 3]: upright stripes of the colours."""
    columns = np.repeat(colours, width // len(colours), 0).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(columns, (height, *columns.shape)))


def stripes(frame):
    width = frame.shape[1] // len(COLOURS)
    return frame[frame.shape[0] // 2, width // 2 :: width].astype(int)


# ---- matrix and range, depth ----


@pytest.mark.parametrize(
    ("pix_fmt", "tags"),
    [
        ("yuv444p", {"matrix": 1}), ("yuv444p", {"matrix": 5}), ("yuv444p", {"matrix": 9}),
        ("yuv444p", {"matrix": 1, "full_range": True}), ("yuv444p", {"matrix": 2}),
        ("yuv444p10le", {"matrix": 1}), ("yuv422p10le", {"matrix": 9}),
    ],
)  # fmt: skip
def test_matrix_range_and_depth(tmp_path, write_tagged, pix_fmt, tags):
    path = write_tagged(tmp_path / "a.mp4", [painted()], pix_fmt=pix_fmt, **tags)
    reader = VideoReader(path)
    np.testing.assert_allclose(stripes(reader.read([0])[0]), COLOURS, atol=4)
    assert reader.notes == ()


def test_a_large_video_of_no_stated_matrix_has_that_of_hd(tmp_path, write_tagged):
    """As mpv, Chrome and others guess; a small one keeps that of SD, which FFmpeg takes for all."""
    for height, matrix in ((576, 5), (640, 1)):
        frame = av.VideoFrame.from_ndarray(painted(height), format="rgb24")
        frame = frame.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range=1)
        path = write_tagged(
            tmp_path / f"{height}.mp4", [frame], matrix=2, options={"crf": "0", "preset": "ultrafast"}
        )
        np.testing.assert_allclose(stripes(VideoReader(path).read([0])[0]), COLOURS, atol=4)


@pytest.mark.parametrize(("matrix", "name"), [(8, "YCgCo"), (10, "constant luminance"), (14, "ICtCp")])
def test_a_matrix_that_cannot_be_honoured_is_named(tmp_path, write_tagged, matrix, name):
    path = write_tagged(tmp_path / "a.mp4", [painted()], matrix=matrix)
    with pytest.raises(DataError, match=rf"a\.mp4: colour matrix .*{name} cannot be honoured; export it"):
        VideoReader(path)


def test_dolby_vision_without_another_layer_is_named(tmp_path):
    """A frame with its metadata and no transfer of its own, as profile 5 has them."""
    codes = {"colorspace": 2, "color_trc": 2, "color_primaries": 2}
    frame = types.SimpleNamespace(
        **codes,
        format=av.VideoFormat("yuv420p10le"),
        interlaced_frame=False,
        side_data={"DOVI_METADATA": b""},
    )
    display = Display((48, 96), (48, 96), (False, False, False))
    with pytest.raises(
        DataError, match=r"a\.mp4: Dolby Vision .*\(profile 5\) cannot be honoured; export it"
    ):
        ShownFrames(tmp_path / "a.mp4", display)(frame)


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le", "yuv444p12le", "gbrp10le", "bgra"])
def test_grey_rgb_and_twelve_bits(tmp_path, write_tagged, pix_fmt):
    grey = np.repeat(COLOURS.mean(1, keepdims=True).round(), 3, 1) if "gray" in pix_fmt else COLOURS
    frame = av.VideoFrame.from_ndarray(painted(colours=grey), format="rgb24").reformat(format=pix_fmt)
    path = write_tagged(tmp_path / "a.mkv", [frame], codec="ffv1", pix_fmt=pix_fmt, options={},
                        matrix=frame.colorspace)  # fmt: skip
    np.testing.assert_allclose(stripes(VideoReader(path).read([0])[0]), grey, atol=2)


# ---- shape of pixels, rotation and mirroring ----


@pytest.mark.parametrize(
    ("shape", "shown", "scale"),
    [((16, 11), (48, 140), "140:48"), ((1, 2), (96, 96), "96:96"), ((2, 1), (48, 192), "192:48")],
)
def test_pixel_aspect_ratio(tmp_path, write_tagged, first_frame, filtered, shape, shown, scale):
    path = write_tagged(tmp_path / "a.mp4", [painted()], shape=shape)
    reader = VideoReader(path)
    frame = reader.read([0])[0]
    assert reader.size == frame.shape[:2] == shown
    ratio, size = ":".join(map(str, shape)), f"{shown[1]}x{shown[0]}"
    assert reader.notes == (f"pixel aspect ratio {ratio}: shown as {size}",)
    theirs = filtered(first_frame(path), "rgb24", ("scale", f"{scale}:flags=bicubic"))
    assert np.abs(frame.astype(int) - theirs).max() <= 2


def test_nearly_square_pixels_are_square(tmp_path, write_tagged):
    reader = VideoReader(write_tagged(tmp_path / "a.mp4", [painted()], shape=(1024, 1023)))
    assert reader.size == (48, 96) and reader.notes == ()


# QuickTime's display matrix (a, b, c, d): x' = a x + c y, y' = b x + d y, with y downwards.
MIRRORED = {
    "left_right": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "upside_down": ((1, 0, 0, -1), lambda image: image[::-1]),
    "transposed": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    "transversed": ((0, -1, -1, 0), lambda image: image[::-1, ::-1].swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", MIRRORED)
def test_mirroring_is_honoured(tmp_path, name):
    """The four turns without a mirror are test_video.py's."""
    matrix, shown = MIRRORED[name]
    stored = np.zeros((1, 64, 96, 3), np.uint8)
    stored[:, :20, :40] = 255
    write_video(tmp_path / "a.mp4", stored, 12)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)
    reader = VideoReader(tmp_path / "a.mp4")
    assert reader.size == shown(stored[0]).shape[:2]
    assert np.abs(reader.read([0])[0].astype(int) - shown(stored[0])).mean() < 5


# ---- fields ----


def test_fields_are_taken_apart(tmp_path, write_tagged, first_frame, filtered):
    """A bar that moves between the fields: shown where the first field has it, as by FFmpeg's yadif."""
    frames = []
    for number in range(3):
        image = np.full((64, 96, 3), 60, np.uint8)
        image[1::2, 10 + 8 * number : 30 + 8 * number] = 220  # the field that comes first, as x264 marks it
        image[0::2, 40 + 8 * number : 60 + 8 * number] = 220
        frames.append(image)
    path = write_tagged(tmp_path / "a.mp4", frames, options={"crf": "0", "x264-params": "bff=1"})
    reader = VideoReader(path)
    assert reader.notes == ("interlaced: deinterlaced frame by frame",)
    shown = reader.read([1])[0]
    assert (shown[4:-4, 20:36] > 200).all() and (shown[4:-4, 52:66] < 80).all()
    assert np.array_equal(shown, list(reader.iterate())[1])
    theirs = filtered(first_frame(path), "rgb24", ("yadif", "mode=send_frame"))
    assert np.abs(reader.read([0])[0].astype(int) - theirs)[4:-4].mean() < 1


# ---- streams ----


def write_streams(path, sizes, cover=None):
    """Write an mp4 of a cover picture (a size) and one video per size, each of its own grey."""
    with av.open(str(path), "w") as output:
        streams = []
        if cover:
            streams.append((output.add_stream("mjpeg", rate=1), cover, "yuvj420p", 1, 250))
            streams[-1][0].disposition = av.stream.Disposition.attached_pic
        for number, size in enumerate(sizes):
            streams.append((output.add_stream("libx264", rate=12), size, "yuv420p", 12, 50 + 100 * number))
        for stream, (height, width), pix_fmt, *_ in streams:
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for stream, (height, width), pix_fmt, num_frames, grey in streams:
            image = np.full((height, width, 3), grey, np.uint8)
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 12)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return path


def test_a_cover_picture_is_not_the_video(tmp_path):
    path = write_streams(tmp_path / "a.mp4", [(64, 96)], cover=(200, 200))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
        ticks = container.streams.video[0].time_base
    reader = VideoReader(path)
    assert len(reader) == 12 and reader.size == (64, 96) and reader.notes == ()
    assert np.abs(reader.read([3])[0].astype(int) - 50).max() < 4
    assert estimate_frames(path) == 12 and stream_time_base(path) == Fraction(1, ticks.denominator)


def test_of_several_videos_the_one_that_players_show(tmp_path):
    reader = VideoReader(write_streams(tmp_path / "a.mkv", [(64, 96), (128, 192)]))
    with av.open(str(reader.path)) as container:
        best = container.streams.best("video")
        size = (best.height, best.width)
    assert reader.size == size and len(reader) == 12
    assert reader.notes == (f"2 video streams: the one that players show is read ({size[1]}x{size[0]})",)


def test_a_change_of_size_is_named(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        stream = output.add_stream("mjpeg", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuvj420p"
        turned = av.CodecContext.create("mjpeg", "w")
        turned.width, turned.height, turned.pix_fmt, turned.time_base = 48, 96, "yuvj420p", Fraction(1, 12)
        for number, encoder, size in ((0, stream, (48, 96)), (1, stream, (48, 96)), (2, turned, (96, 48))):
            frame = av.VideoFrame.from_ndarray(painted(*size), format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, Fraction(1, 12)
            for packet in encoder.encode(frame):
                packet.stream, packet.pts, packet.dts, packet.time_base = (
                    stream,
                    number,
                    number,
                    Fraction(1, 12),
                )
                output.mux(packet)
    reader = VideoReader(tmp_path / "a.mkv")
    assert reader.read([0, 1]).shape == (2, 48, 96, 3)
    with pytest.raises(
        DataError, match=r"a\.mkv: frame 2 is stored as 48x96, those before as 96x48; cut the"
    ):
        reader.decode_all()


# ---- alpha ----


def test_alpha_is_shown_on_black(tmp_path, write_tagged):
    image = np.concatenate([painted(), np.full((48, 96, 1), 255, np.uint8)], -1)
    image[:, :48, 3] = 128
    frame = av.VideoFrame.from_ndarray(image, format="rgba").reformat(format="yuva444p10le", dst_colorspace=1)
    path = write_tagged(tmp_path / "a.mov", [frame], codec="prores_ks", pix_fmt="yuva444p10le", options={})
    reader = VideoReader(path)
    assert reader.notes == ("alpha channel: shown on black",)
    expected = COLOURS * np.array([128, 128, 128, 255, 255, 255])[:, None] / 255
    np.testing.assert_allclose(stripes(reader.read([0])[0]), expected, atol=5)


def test_alpha_that_is_not_decoded_is_named(tmp_path, write_tagged):
    frame = av.VideoFrame.from_ndarray(painted(), format="rgb24").reformat(format="yuva420p")
    path = write_tagged(
        tmp_path / "a.webm", [frame], codec="libvpx-vp9", pix_fmt="yuva420p", options={}, matrix=2
    )
    assert VideoReader(path).notes == ("alpha channel of vp9: not read, all is taken as opaque",)
