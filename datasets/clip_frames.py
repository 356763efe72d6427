"""Which frames of a video a clip has: random, but the same for (seed, epoch, sample), however it is read."""

import zlib
from pathlib import Path

import numpy as np

from system.errors import DataError


def clip_generator(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """Return the generator of a sample's clip in an epoch."""
    return np.random.default_rng([seed % 2**63, epoch, zlib.crc32(sample_id.encode())])


def draw_start(generator: np.random.Generator, num_frames: int, clip_span: int) -> int:
    """Return a random first frame of a clip, the first draw of its generator."""
    last_start = num_frames - clip_span
    return int(generator.integers(last_start + 1)) if last_start >= 0 else 0


def check_clip(path: Path, num_frames: int, frames: np.ndarray) -> None:
    """Raise DataError unless a video of num_frames has all these frames, which ascend."""
    if frames[0] < 0 or frames[-1] >= num_frames:
        span = frames[-1] - frames[0] + 1
        problem = f"{num_frames} frames, too short for a clip of {span} frames from frame {frames[0]}"
        raise DataError(path, problem, "use a longer video, or smaller --sequence_length or --frame_stride")
