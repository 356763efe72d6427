"""Scene changes of a video, and the pieces that it is therefore cut into.

A cut changes the image and its colours from one frame to the next, far more than the frames around it
change, and the old image does not come back, as it does behind a flash of light. Slow cross-fades are not
found.
"""

import math

import cv2
import numpy as np

THUMBNAIL_SIDE = 32
MIN_IMAGE_CHANGE = 0.10  # mean absolute difference of thumbnails in 0..1
MIN_COLOUR_CHANGE = 0.30  # half the L1 distance of two colour histograms, in 0..1
MIN_RATIO = 3.0  # to the median change of the frames around
NEIGHBOURS = 12  # frames to either side
FLASH_FRAMES = 4  # a flash lasts as many at most


class CutDetector:
    """Frames one by one in, their cuts out. Keeps a few thumbnails, and a few numbers per frame."""

    def __init__(self) -> None:
        self._recent: list[np.ndarray] = []  # thumbnails, the last FLASH_FRAMES + 1
        self._histogram: np.ndarray | None = None
        # Of each frame from the one before it, the one before that, ...
        self._image_changes: list[list[float]] = []
        self._colour_changes: list[float] = []

    def add(self, frame: np.ndarray) -> None:
        """Note the next frame, uint8 [H, W, 3]."""
        step = max(1, min(frame.shape[:2]) // (8 * THUMBNAIL_SIDE))  # the mean of a few pixels is as good
        size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        thumbnail = cv2.resize(frame[::step, ::step], size, interpolation=cv2.INTER_AREA)
        levels = (thumbnail >> 5).astype(np.int64).reshape(-1, 3)
        histogram = np.bincount(levels @ (64, 8, 1), minlength=512) / len(levels)
        thumbnail = thumbnail.astype(np.float32) / 255
        before = histogram if self._histogram is None else self._histogram
        self._colour_changes.append(float(np.abs(histogram - before).sum() / 2))
        self._image_changes.append([float(np.abs(thumbnail - other).mean()) for other in self._recent])
        self._recent = [thumbnail, *self._recent][: FLASH_FRAMES + 1]
        self._histogram = histogram

    def cuts(self) -> list[int]:
        """Return the frames that begin a new scene, in order; 0 is not among them."""
        changes = np.array([row[0] if row else 0.0 for row in self._image_changes])
        candidates = (changes >= MIN_IMAGE_CHANGE) & (np.array(self._colour_changes) >= MIN_COLOUR_CHANGE)
        return [
            int(frame)
            for frame in np.flatnonzero(candidates)
            if self._stands_out(changes, frame) and not self._is_flash(frame, 0.5 * changes[frame])
        ]

    @staticmethod
    def _stands_out(changes: np.ndarray, frame: int) -> bool:
        first = max(1, frame - NEIGHBOURS)
        around = np.delete(changes[first : frame + NEIGHBOURS + 1], frame - first)
        return len(around) == 0 or changes[frame] >= MIN_RATIO * np.median(around)

    def _is_flash(self, frame: int, same: float) -> bool:
        """Return whether the image before the frame is back soon, or the frame brings an earlier one back."""
        own, *later = self._image_changes[frame : frame + FLASH_FRAMES + 1]
        returns = [changes[distance] for distance, changes in enumerate(later, start=1)]
        return any(change < same for change in [*returns, *own[1:]])


def split_into_pieces(
    frame_seconds: np.ndarray, frame_rate: float, cuts: list[int], *, max_seconds: float, min_seconds: float
) -> tuple[list[range], list[range]]:
    """Return (pieces kept, pieces that are too short), as ranges of frames in order.

    Scenes longer than max_seconds (0: no limit) are divided evenly. A frame lasts until the next one.
    """
    ends = np.append(frame_seconds[1:], frame_seconds[-1] + 1 / frame_rate)
    kept, too_short = [], []
    for first, last in zip([0, *cuts], [*cuts, len(frame_seconds)], strict=True):
        begin, duration = frame_seconds[first], ends[last - 1] - frame_seconds[first]
        # A thousandth of grace: 30 s at 29.97 frames per second are 30.03 s.
        parts = max(1, math.ceil(duration / max_seconds - 1e-3)) if max_seconds else 1
        borders = begin + duration * np.arange(1, parts) / parts
        edges = [first, *(first + np.searchsorted(frame_seconds[first:last], borders - 1e-6)).tolist(), last]
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            if stop > start:
                long_enough = ends[stop - 1] - frame_seconds[start] >= min_seconds - 1e-6
                (kept if long_enough else too_short).append(range(start, stop))
    return kept, too_short
