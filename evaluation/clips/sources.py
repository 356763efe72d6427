"""Frames of a clip, given again each time they are asked for: memory does not grow with the video."""

from collections.abc import Callable, Iterator

import numpy as np

from datasets import VideoReader
from datasets.transforms import ClipTransform, Size

FrameSource = Callable[[], Iterator[np.ndarray]]  # yields uint8 [H, W, 3], RGB, one per frame of the clip


def video_source(
    reader: VideoReader, indices: np.ndarray, change: ClipTransform | None = None
) -> FrameSource:
    """Return the source of frames of a video: `indices` ascend and may repeat."""

    def frames() -> Iterator[np.ndarray]:
        wanted, place = np.asarray(indices), 0
        for number, pixels in enumerate(reader.iterate()):
            if number < wanted[place]:
                continue
            pixels = pixels if change is None else fitted(pixels, change)
            while place < len(wanted) and wanted[place] == number:
                yield pixels
                place += 1
            if place == len(wanted):
                return

    return frames


def array_source(frames: np.ndarray) -> FrameSource:
    """Return the source of frames uint8 [F, H, W, 3]."""
    return lambda: iter(frames)


def fitted(pixels: np.ndarray, transform: ClipTransform) -> np.ndarray:
    """Return a frame uint8 [H, W, 3] as the transform has it; the same array where that changes nothing."""
    is_whole = transform.offset == (0, 0) and transform.inner_size == transform.output_size
    return pixels if is_whole and pixels.shape[:2] == transform.output_size else transform.image(pixels)


def resized_to(size: Size) -> ClipTransform:
    """Return the transform that stretches a whole frame to (height, width)."""
    return ClipTransform(size, size, (0, 0))
