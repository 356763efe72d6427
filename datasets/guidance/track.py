"""A track: one video's guidance of one type, and which of its rows belongs to which frame.

Rows belong to the video's frames by number, or, where a rate is stated, by time. Nothing is filled in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.unread import Unread
from system.errors import DataError

if TYPE_CHECKING:
    from .kind import GuidanceKind

META_NAME = "meta.json"
# Of rows per second: videos', and those of librosa (44,100 or 22,050 samples a second, steps of 512 or 256).
USUAL_RATES = (10, 12, 12.5, 15, 20, 24, 25, 29.97, 30, 43.066, 48, 50, 59.94, 60, 86.133, 100, 120, 172.266)
ROUNDED_ROWS, ROUNDED_SHARE = 1.0, 0.005  # how far a track of the right rate is from the video's length


@dataclass(frozen=True)
class Track:
    """One video's guidance files of one type."""

    type_name: str
    kind: GuidanceKind
    path: Path  # the folder of files, one per row, or the one file
    files: tuple[Path, ...] | None  # None: path is one file of all rows
    num_rows: int
    fps: float | None  # rows per second, where stated
    meta: dict = field(default_factory=dict)  # what meta.json states
    unread: tuple[Unread, ...] = ()  # what else lies in the folder
    shape: tuple[int, ...] | None = None  # of the one file of all rows, where it is an array
    memo: dict = field(default_factory=dict, repr=False, compare=False)  # what its kind found out of all rows

    def file(self, row: int) -> Path:
        return self.path if self.files is None else self.files[row]

    def where(self, row: int) -> str:
        """Return words for the row's place in its file, which is empty for a file of its own."""
        return f"row {row}: " if self.files is None else ""

    @property
    def stated(self) -> str:
        """Words for what decides the numbers besides the files' content; a part of cache files' keys."""
        rate = "" if self.fps is None else f" at {self.fps!r} a second"
        units = f" in {self.meta['coordinates']} units" if "coordinates" in self.meta else ""
        return rate + units + (f" by {self.kind.source_digest}" if self.kind.source_digest else "")

    def rows_at(self, frames: np.ndarray, frame_seconds: np.ndarray) -> np.ndarray:
        """Return the row of each frame: the same number, or the nearest in time.

        frame_seconds: the whole video's, [N]. Raises DataError when not every frame of the video has a row.
        """
        num_frames = len(frame_seconds)
        if self.fps is None:
            if self.num_rows != num_frames:
                raise self._miscounted(num_frames)
            return np.asarray(frames)
        last = frame_seconds[-1] * self.fps
        if last > self.num_rows:  # one row period of grace: feature extractors round the end either way
            rows = f"{self.num_rows} rows at {self.fps:g} per second"
            end = f"ends at {self.num_rows / self.fps:.2f} s ({rows})"
            problem = f"{end}, the video's last frame is at {frame_seconds[-1]:.2f} s"
            fitting = self.fitting_rate(frame_seconds)
            fix = "extract it for the whole video" + (f", or correct the rate ({fitting})" if fitting else "")
            raise DataError(self.path, problem, fix)
        nearest = np.floor(frame_seconds[frames] * self.fps + 0.5).astype(np.int64)
        return np.clip(nearest, 0, self.num_rows - 1)

    def fitting_rate(self, frame_seconds: np.ndarray) -> str:
        """Return words for the rate at which the rows would be as long as the video; "" for no usual rate.

        Music that ends early fits some rate too, at which it would be out of time with the dance.
        """
        if self.num_rows == len(frame_seconds):
            return "there is a row for each frame: state none"
        last, num_frames = float(frame_seconds[-1]), len(frame_seconds)
        seconds = max(last * num_frames / max(1, num_frames - 1), 1e-6)
        rates = [rate for rate in (*USUAL_RATES, num_frames / seconds) if last * rate <= self.num_rows]
        rate = min(rates, key=lambda one: abs(one * seconds - self.num_rows), default=0.0)
        if abs(rate * seconds - self.num_rows) > ROUNDED_ROWS + ROUNDED_SHARE * self.num_rows:
            return ""
        return f"{rate:.5g} per second would fit"

    def _miscounted(self, num_frames: int) -> DataError:
        problem = f"{self.num_rows} rows of {self.type_name} for {num_frames} frames"
        fix = "make one for each frame of the video as it is decoded"
        if not self.kind.in_frame:
            rate_flag = "--music_feature_fps or " if self.type_name == "music" else ""
            fix = f'{fix}, or state their rate with {rate_flag}a {META_NAME} {{"fps": ...}} beside them'
        return DataError(self.path, problem, fix)
