"""Videos whose frames show their own number, and data folders to plant faults in."""

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from datasets import GuidanceDataset, check_data, write_video

CELL = 8  # pixels of a bit's column; 8 bits make a frame of 64x64
NUM_BITS = 8
NUM_POINTS, NUM_FEATURES, NUM_FRAMES, FRAME_RATE = 134, 5, 24, 12


def numbered_frame(number: int) -> np.ndarray:
    """uint8 [64, 64, 3]: column k is white where bit k of the number is set."""
    bits = [255 * (number >> bit & 1) for bit in range(NUM_BITS)]
    return np.repeat(np.tile(np.repeat(np.array(bits, np.uint8), CELL), (64, 1))[..., None], 3, -1)


def shown_number(frame: np.ndarray) -> int:
    """The number that a decoded frame [H, W, 3] of any size shows; values from 0 to 255 or from -1 to 1."""
    frame = np.asarray(frame)
    middle = 127.5 if frame.dtype == np.uint8 else 0.0
    columns = frame.reshape(frame.shape[0], NUM_BITS, -1).mean((0, 2))
    return sum(int(value > middle) << bit for bit, value in enumerate(columns))


@pytest.fixture(scope="session")
def read_number() -> Callable[[np.ndarray], int]:
    return shown_number


@pytest.fixture(scope="session")
def write_numbered() -> Callable[..., Path]:
    """write_numbered(path, num_frames, ...): a video whose frame k shows k, by any codec and any times."""

    def write(
        path: Path, num_frames: int, *, codec="libx264", pts=None, time_base=Fraction(1, FRAME_RATE),
        options=None, container_options=None, shape=(1, 1), interlaced=False,
    ) -> Path:  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=container_options or {}) as output:
            fields = {"x264-params": "bff=1"} if interlaced else {}
            stream = output.add_stream(codec, rate=FRAME_RATE, options={**(options or {}), **fields})
            stream.width = stream.height = 64
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.time_base = time_base
            stream.codec_context.sample_aspect_ratio = Fraction(*shape)
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
                frame.pts, frame.time_base = number if pts is None else pts[number], time_base
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return path

    return write


def write_sample(root: Path, sample_id: str, num_frames: int = NUM_FRAMES) -> None:
    """A numbered video; in frame k all key points lie at x = k / 100 and music is [k, 1, 2, 3, 4]."""
    frames = np.stack([numbered_frame(number) for number in range(num_frames)])
    write_video(root / "videos" / f"{sample_id}.mp4", frames, FRAME_RATE)
    poses, music = root / "poses" / sample_id, root / "music_features" / sample_id
    poses.mkdir(parents=True)
    music.mkdir(parents=True)
    for number in range(num_frames):
        keypoints = [[number / 100, 0.5, 0.9]] * NUM_POINTS
        content = {"keypoints": keypoints, "pose_type": "dance", "frame_id": number}
        (poses / f"frame_{number:03d}.json").write_text(json.dumps(content))
        np.save(music / f"frame_{number:03d}.npy", np.array([number, 1, 2, 3, 4], np.float32))
    (root / "reference_images").mkdir(exist_ok=True)
    Image.fromarray(numbered_frame(0b10101010)).save(root / "reference_images" / f"{sample_id}.png")


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory) -> Path:
    """A clean data folder of three samples, for tests that only read."""
    root = tmp_path_factory.mktemp("shared_data")
    for sample_id in ("dance_001", "dance_002", "dance_003"):
        write_sample(root, sample_id)
    return root


@pytest.fixture
def data_root(shared_root, tmp_path) -> Path:
    """Its first two samples, to be changed at will."""
    return shutil.copytree(shared_root, tmp_path / "data", ignore=shutil.ignore_patterns("dance_003*"))


@pytest.fixture(scope="session")
def settings() -> dict:
    """Keywords of GuidanceDataset and check_data that fit these folders."""
    return {
        "guidance_types": ["music", "pose"],
        "guidance_input_channels": [NUM_FEATURES, NUM_POINTS],
        "resolution": 64,
        "sequence_length": 4,
    }


@pytest.fixture
def check(settings) -> Callable:
    """check(root, ...): check_data with these settings, but for those that are given."""
    return lambda root, **changes: check_data(root, **{**settings, **changes})


@pytest.fixture(scope="session")
def real_data_root() -> Path:
    path = Path(__file__).parents[2].parent / "shared" / "real" / "data"
    if not path.is_dir():
        pytest.skip(f"the real sample is not here ({path})")
    return path


@pytest.fixture
def make(settings):
    """make(root, **changes): the dataset with the folders' settings."""
    return lambda root, **changes: GuidanceDataset(root, **{**settings, **changes})
