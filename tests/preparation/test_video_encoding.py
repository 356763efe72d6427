"""The re-encoded video: times, key frames, size, rotation, sound."""

from fractions import Fraction

import av
import numpy as np
import pytest

from datasets import VideoReader
from datasets.media.sound import read_audio
from preparation.video_encoding import (
    KEY_FRAME_DISTANCE,
    VideoEncoder,
    output_size,
    scale_frame,
    stream_time_base,
)


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((1920, 1080), 512, (910, 512)),
        ((480, 640), 512, (480, 640)),  # never up
        ((1080, 1920), 0, (1080, 1920)),
        ((101, 75), 0, (100, 74)),  # h264 wants even sides
        ((101, 75), 64, (86, 64)),
    ],
)
def test_output_size(size, resolution, expected):
    assert output_size(size, resolution) == expected
    assert scale_frame(np.zeros((*size, 3), np.uint8), expected).shape == (*expected, 3)


UNEVEN = np.cumsum([0, *[(1 + k % 4) / 60 for k in range(39)]])


@pytest.mark.parametrize(
    ("seconds", "time_base"),
    [
        (np.arange(40) / 24, Fraction(1, 24)),
        (np.arange(40) * 1001 / 30000, Fraction(1, 30000)),
        (UNEVEN, Fraction(1, 600)),
        (UNEVEN + 0.25, Fraction(1, 12800)),
    ],
)
def test_times_are_kept(tmp_path, draw, seconds, time_base):
    path = tmp_path / "a.mp4"
    with VideoEncoder(path, (64, 48), rate=24, time_base=time_base) as encoder:
        for second in seconds:
            encoder.write(draw((64, 48), [(0.2, 0.2, 0.2)]), second)
    reader = VideoReader(path)
    tick = float(time_base) / 2
    assert np.abs(reader.frame_seconds - seconds).max() <= (1e-9 if time_base != Fraction(1, 12800) else tick)
    assert (
        np.diff([0, *np.searchsorted(reader.table.pts, reader.table.key_pts), 40]).max() <= KEY_FRAME_DISTANCE
    )
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_time_base_is_the_source_s(tmp_path, write_raw):
    ticks = stream_time_base(write_raw(tmp_path / "a.mp4", 4))
    assert ticks.numerator == 1 and ticks.denominator % 600 == 0


def test_sound_keeps_its_place(tmp_path, draw, write_clicks):
    """A click at 1.25 s of the file is heard 0.75 s into a piece that starts at 0.5 s."""
    wave_path = write_clicks(tmp_path / "a.wav", [1.25], seconds=3)
    with VideoEncoder(tmp_path / "a.mp4", (64, 48), rate=10, time_base=Fraction(1, 10)) as encoder:
        encoder.add_sound(wave_path, 0.5, 2.0)
        for number in range(20):
            encoder.write(draw((64, 48), []), number / 10)
    sound, rate = read_audio(tmp_path / "a.mp4", 0, 2)
    assert np.abs(sound).max(axis=0).argmax() / rate == pytest.approx(0.75, abs=0.005)
