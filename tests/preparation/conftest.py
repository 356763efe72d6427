"""Raw videos with known contents: red squares that move, clicks at known times."""

import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from datasets.media.video_writing import add_h264_stream, add_sound_stream, h264_frame

SAMPLE_RATE = 44_100
FRAME_RATE = 12
MARKER = Path(__file__).with_name("marker_pose.py")


@pytest.fixture(scope="session")
def marker_estimator() -> str:
    return f"{MARKER}:find_markers"


@pytest.fixture(scope="session")
def marker_module() -> Path:
    return MARKER


@pytest.fixture(scope="session")
def write_clicks() -> Callable:
    return write_click_track


def write_click_track(path: Path, click_seconds, *, seconds: float) -> Path:
    """Writes a wave file with a short burst of noise at each time."""
    sound = clicks(click_seconds, seconds)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((20_000 * sound).astype("<i2").tobytes())
    return path


def clicks(click_seconds, seconds: float) -> np.ndarray:
    """Float32 [N] at SAMPLE_RATE."""
    sound, generator = np.zeros(int(seconds * SAMPLE_RATE), np.float32), np.random.default_rng(0)
    for second in click_seconds:
        start = round(second * SAMPLE_RATE)
        burst = generator.uniform(-1, 1, 400) * np.exp(-np.arange(400) / 100)
        sound[start : start + 400] += burst[: len(sound) - start]
    return sound


def draw_frame(size, squares, background=(40, 80, 40)) -> np.ndarray:
    """uint8 [H, W, 3] with red squares, each (x, y, side) as fractions of the width."""
    frame = np.full((*size, 3), background, np.uint8)
    for x, y, side in squares:
        left, top, width = (round(value * size[1]) for value in (x, y, side))
        frame[top : top + width, left : left + width] = (230, 20, 20)
    return frame


@pytest.fixture(scope="session")
def draw() -> Callable:
    return draw_frame


@pytest.fixture(scope="session")
def write_raw(tmp_path_factory) -> Callable[..., Path]:
    """write_raw(path, ...): a raw video; see the keywords."""

    def write(
        path: Path,
        num_frames: int = 24,
        *,
        frames=None,  # uint8 [F, H, W, 3]; else a square that walks to the right
        seconds=None,  # presentation times, else FRAME_RATE a second
        click_seconds=(0.5, 1.0, 1.5),  # None: no sound
        size=(96, 64),
        shape=(1, 1),  # of a pixel
    ) -> Path:
        if frames is None:
            frames = [draw_frame(size, [(0.1 + 0.4 * k / num_frames, 0.3, 0.3)]) for k in range(num_frames)]
        seconds = np.arange(len(frames)) / FRAME_RATE if seconds is None else np.asarray(seconds)
        time_base = Fraction(1, 600)
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as output:
            stream = add_h264_stream(output, frames[0].shape[:2], Fraction(FRAME_RATE), time_base)
            stream.codec_context.sample_aspect_ratio = Fraction(*shape)
            if click_seconds is not None:
                duration = float(seconds[-1]) + 1 / FRAME_RATE
                wave_path = write_click_track(
                    tmp_path_factory.mktemp("sound") / "a.wav", click_seconds, seconds=duration
                )
                add_sound_stream(output, wave_path, 0, duration)
            to_yuv = VideoReformatter()
            for frame, second in zip(frames, seconds, strict=True):
                output.mux(stream.encode(h264_frame(frame, to_yuv, round(second / time_base), time_base)))
            output.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def real_video() -> Path:
    path = Path(__file__).parents[2].parent / "shared" / "real" / "dance_with_music.mp4"
    if not path.is_file():
        pytest.skip(f"the real video is not here ({path})")
    return path
