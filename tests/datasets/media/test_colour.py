"""HDR and wide gamuts against the standards' anchors, known pictures and FFmpeg's filters."""

import av
import numpy as np
import pytest

from datasets import VideoReader
from datasets.media.colour import HLG, PEAK_NITS, PQ, WHITE_NITS, rolled_off, to_bt709

COLOURS = np.array(
    [[200, 30, 30], [30, 200, 30], [30, 30, 200], [235, 235, 235], [96, 96, 96], [180, 120, 90]]
)
BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
DISPLAY_P3 = np.linalg.inv([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])
LUMINANCE = np.array([0.2627, 0.6780, 0.0593])


def light_of(colours):
    return (colours / 255) ** 2.4


def hlg_signal(light):
    """BT.2100's inverse, of light in units of 203 nits on a display of 1000 nits."""
    display = light * 0.203
    scene = display * (display @ LUMINANCE)[:, None] ** (1 / 1.2 - 1)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene),
                    0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073)  # fmt: skip


def pq_signal(light):
    power = (light * 203 / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def as_frame(signal):
    """Return 10-bit 4:4:4 patches of RGB signals [N, 3] in 0..1, by BT.2020's matrix, limited range."""
    luma = signal @ LUMINANCE
    blue, red = (signal[:, 2] - luma) / 1.8814, (signal[:, 0] - luma) / 1.4746
    planes = np.stack([64 + 876 * luma, 512 + 896 * blue, 512 + 896 * red]).round().astype(np.uint16)
    frame = av.VideoFrame(16 * len(signal), 32, "yuv444p10le")
    for plane, values in zip(frame.planes, planes, strict=True):
        row = np.zeros(plane.line_size // 2, np.uint16)
        row[: frame.width] = np.repeat(values, 16)
        plane.update(np.tile(row, frame.height).tobytes())
    return frame


def patches(frame):
    return frame[16, 8::16].astype(int)


@pytest.mark.parametrize(("transfer", "signal"), [(HLG, hlg_signal), (PQ, pq_signal)])
def test_an_hdr_video_of_a_known_picture(tmp_path, write_tagged, transfer, signal):
    frame = as_frame(signal(light_of(COLOURS) @ BT2020.T))
    path = write_tagged(tmp_path / "a.mp4", [frame], pix_fmt="yuv444p10le", matrix=9, transfer=transfer,
                        primaries=9)  # fmt: skip
    reader = VideoReader(path)
    np.testing.assert_allclose(patches(reader.read([0])[0]), COLOURS, atol=8)
    assert np.array_equal(next(reader.iterate()), reader.read([0])[0])
    name = {HLG: "HLG", PQ: "PQ (SMPTE 2084)"}[transfer]
    assert reader.notes == (f"transfer {name}: tone-mapped from HDR; primaries BT.2020: converted to BT.709",)


@pytest.mark.parametrize(("transfer", "white"), [(HLG, 0.75), (PQ, 0.58)])
def test_reference_white_is_where_the_standard_has_it(transfer, white):
    """BT.2408, table 1: 75 % of HLG's signal and 58 % of PQ's are 203 nits."""
    level = np.full((1, 1, 3), round(white * 65_535), np.uint16)
    expected = 255 * rolled_off(np.ones(1))[0] ** (1 / 2.4)
    np.testing.assert_allclose(to_bt709(transfer, 9)(level), expected, atol=1)


@pytest.mark.parametrize("transfer", [HLG, PQ])
def test_tone_mapping_is_that_of_ffmpeg(filtered, transfer):
    """Its tonemap filter on the same linear light, greys and colours from black to 1000 nits."""
    conversion = to_bt709(transfer, 1)
    light = np.linspace(0, PEAK_NITS / WHITE_NITS, 64, dtype=np.float32)
    colours = np.stack([light, light * 0.5, light * 0.1], -1)
    planes = np.ascontiguousarray(np.broadcast_to(colours, (16, 64, 3)))
    frame = av.VideoFrame.from_ndarray(planes, format="gbrpf32le")
    frame.color_trc = 8  # linear
    peak = PEAK_NITS / WHITE_NITS
    theirs = filtered(frame, "gbrpf32le", ("tonemap", f"tonemap=mobius:param=0.8:desat=0:peak={peak}"))
    ours = colours * (rolled_off(light.clip(1e-6)) / light.clip(1e-6))[:, None]
    np.testing.assert_allclose(
        255 * ours.clip(0, 1) ** (1 / 2.4), 255 * theirs[0].clip(0, 1) ** (1 / 2.4), atol=0.6
    )
    assert conversion.is_hdr and rolled_off(np.array([0.5, peak])).tolist() == pytest.approx([0.5, 1])


@pytest.mark.parametrize(
    ("primaries", "matrix", "name"), [(9, BT2020, "BT.2020"), (12, DISPLAY_P3, "Display P3")]
)
def test_a_wide_gamut_of_ordinary_range(tmp_path, write_tagged, primaries, matrix, name):
    frame = as_frame(np.clip(light_of(COLOURS) @ matrix.T, 0, 1) ** (1 / 2.4))
    path = write_tagged(tmp_path / "a.mp4", [frame], pix_fmt="yuv444p10le", matrix=9, primaries=primaries)
    reader = VideoReader(path)
    np.testing.assert_allclose(patches(reader.read([0])[0]), COLOURS, atol=3)
    assert reader.notes == (f"primaries {name}: converted to BT.709",)


@pytest.mark.parametrize(
    ("primaries", "name"),
    [(4, "bt470m"), (8, "film"), (9, "bt2020"), (11, "smpte431"), (12, "smpte432"), (22, "ebu3213")],
)
def test_primaries_are_converted_as_ffmpeg_does(filtered, primaries, name):
    """Its colorspace filter, to BT.709, under a curve that it knows."""
    signal = 0.4 + 0.4 * COLOURS / 255  # inside of all gamuts
    frame = as_frame(signal)
    curve = "ispace=bt2020ncl:irange=tv:itrc=gamma28:space=bt709:range=tv:trc=gamma28:format=yuv444p10"
    theirs = filtered(frame, "rgb24", ("colorspace", f"{curve}:iprimaries={name}:primaries=bt709"))
    light = signal**2.8 @ to_bt709(1, primaries).matrix.T
    np.testing.assert_allclose(patches(theirs), 255 * light.clip(0, 1) ** (1 / 2.8), atol=5)


@pytest.mark.parametrize("transfer", [1, 2, 6, 13, 14, 15])
@pytest.mark.parametrize("primaries", [1, 2, 5, 6, 7])
def test_ordinary_codes_are_left_as_they_are(transfer, primaries):
    assert to_bt709(transfer, primaries) is None
