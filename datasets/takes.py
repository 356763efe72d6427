"""A take of a dance without its pixels: when its frames are, and its key points and music at other times.

Shared by the dataset of dances, the check of their folders and its report; sampling resamples music alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from system.errors import DataError

from .data_folder import METADATA_FOLDER, DataFolder, Sample, read_metadata
from .guidance.track import META_NAME, Track
from .media.video import VideoReader
from .transforms import Size

MIN_SECONDS = 1.0
NECK_AND_HIPS = (1, 8, 11)
MOST_POINTS = 0.75  # of those of the take's fullest frame
LEAST_TORSO = 0.5  # of the take's median: a dancer who bends towards the camera tells no size
SAME_FRAME = 0.02  # of a frame: containers round times to milliseconds


@dataclass(frozen=True)
class Timeline:
    """The frames of a take in time, as a VideoReader has them."""

    frame_seconds: np.ndarray  # float64 [N]
    frame_rate: float
    size: Size | None  # (height, width) of the frame; None where nothing tells it

    def __len__(self) -> int:
        return len(self.frame_seconds)


def read_timeline(folder: DataFolder, sample: Sample, tracks: Mapping[str, Track]) -> Timeline:
    """Return when a sample's frames are: at the rate of its metadata, else as its video has them.

    tracks: {"pose": ..., "music": ...}. A video is opened only for what nothing else tells. Raises DataError
    where no rate is stated, and for a track that does not reach over all frames.
    """
    path, pose = folder.root / METADATA_FOLDER / f"{sample.sample_id}.json", tracks["pose"]
    metadata = read_metadata(folder.root, sample.sample_id)
    size = pose.kind.stated_size(pose, ()) or _stated_size(metadata)
    rate, counted = _stated_rate(path, metadata), [track for track in tracks.values() if track.fps is None]
    if metadata.get("variable_frame_rate") is True and sample.video_paths:
        rate = None  # an average: the video's own times count
    if not counted:
        rate = pose.fps
    video = VideoReader(sample.video_path()) if sample.video_paths and None in (rate, size) else None
    if rate is None and video is None:
        rate = pose.fps  # of which music without a rate has a row each
    if rate is None and video is None:
        problem = f"no frame rate of sample {sample.sample_id!r}, and no video that tells it"
        fix = 'write the frames per second of its poses there, as {"frame_rate": 30}'
        raise DataError(path, problem, fix)
    if rate is None:
        seconds, rate = video.frame_seconds, video.frame_rate
    else:
        seconds = np.arange((pose if pose in counted else [*counted, pose][0]).num_rows) / rate
    for track in tracks.values():
        track.rows_at(np.arange(len(seconds)), seconds)
    return Timeline(seconds, float(rate), size or (video.size if video else None))


def stated_frame(data_root: Path, sample_id: str) -> tuple[float | None, Size | None]:
    """Return (frames per second, (height, width) of a frame) where a sample's metadata state them."""
    metadata = read_metadata(data_root, sample_id)
    path = data_root / METADATA_FOLDER / f"{sample_id}.json"
    return _stated_rate(path, metadata), _stated_size(metadata)


def _stated_rate(path: Path, metadata: dict) -> float | None:
    rate = metadata.get("frame_rate")
    is_rate = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < 1e6
    if rate is not None and not is_rate:
        problem = f"frame_rate must be a positive number, got {rate!r}"
        raise DataError(path, problem, 'write the frames per second, as {"frame_rate": 30}')
    return rate


def _stated_size(metadata: dict) -> Size | None:
    size = metadata.get("size")
    is_pair = isinstance(size, list) and len(size) == 2
    return tuple(size) if is_pair and all(isinstance(side, int) and side > 0 for side in size) else None


def check_size_known(track: Track, units: str | None, size: Size | None) -> None:
    """Raise DataError for key points in pixels of an unknown number."""
    if units == "pixel" and size is None:
        fix = f'write its "width" and "height" into a {META_NAME} in {track.path.parent.name}/'
        raise DataError(track.path, "its key points are in pixels, of a frame of unknown size", fix)


def check_music(track: Track, row_shape: Sequence[int]) -> None:
    """Raise DataError for rows that are maps."""
    if len(row_shape) != 1:
        problem = f"rows of shape {tuple(row_shape)}, a dance follows rows of one dimension"
        raise DataError(track.path, problem, "extract the features again, as one vector per row")


def check_seconds(track: Track, num_frames: int, frame_rate: float) -> None:
    """Raise DataError for a take too short to dance in."""
    if num_frames / frame_rate < MIN_SECONDS - 1e-6:
        problem = f"lasts {num_frames / frame_rate:.2f} s, a take needs {MIN_SECONDS:g} s"
        raise DataError(track.path, problem, "use a longer one, or remove the sample")


def read_take_rows(track: Track, num_channels: int, size: Size | None) -> np.ndarray:
    """Return all rows of a track, [N, ...], in terms of the frame. Raises DataError."""
    read, numbers = track.kind.reader(track, num_channels), range(track.num_rows)
    rows = [read(number) for number in numbers]
    units = track.kind.units(track, lambda asked: [rows[number] for number in asked])
    check_size_known(track, units, size)
    return track.kind.values(track, numbers, rows, units, size)


def reference_frames(track: Track, points: np.ndarray) -> np.ndarray:
    """Return the frames of key points [N, K, 3] that show a body to begin from: its torso and most points.

    All is measured in torso lengths of such a frame. Raises DataError where there is none.
    """
    present = points[..., 2] > 0
    whole, counts = present[:, NECK_AND_HIPS].all(1), present.sum(1)
    neck, *hips = (points[:, point, :2] for point in NECK_AND_HIPS)
    torso = np.linalg.norm(neck - sum(hips) / 2, axis=-1)
    whole &= torso >= LEAST_TORSO * np.median(torso[whole]) if whole.any() else False
    if not whole.any():
        problem = "no frame has the neck and both hips: no body to begin a dance from"
        raise DataError(track.path, problem, "detect the poses again, or remove the sample")
    return np.flatnonzero(whole & (counts >= MOST_POINTS * counts[whole].max()))


# ---- at other times ----


def row_positions(seconds: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return where times lie among the rows' times, in rows; before the first and after the last, those."""
    positions = np.interp(at, seconds, np.arange(len(seconds)))
    nearest = np.rint(positions)
    return np.where(np.abs(positions - nearest) < SAME_FRAME, nearest, positions)


def resample_key_points(points: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return key points [F, K, 3] between rows of [N, K, 3]; points absent on either side are absent.

    On Catmull-Rom's curve where the rows beyond have the point too: straight lines take 12 to 20 % of the
    jerk of a dance at 25 or 30 frames a second, the curve 5 %.
    """
    low, last = np.floor(positions).astype(int), len(points) - 1
    share = (positions - low).astype(np.float32)[:, None, None]
    if not share.any():
        return points[low]
    far, near, next_, beyond = (points[np.clip(low + offset, 0, last)] for offset in (-1, 0, 1, 2))
    is_inside = ((low > 0) & (low < last - 1))[:, None, None]
    is_curve = is_inside & (np.minimum(far[..., 2:], beyond[..., 2:]) > 0)
    bend = far * 2 - near * 5 + next_ * 4 - beyond + share * ((near - next_) * 3 + beyond - far)
    curve = near + share / 2 * (next_ - far + share * bend)
    between = np.where(is_curve, curve, near + share * (next_ - near))
    confidence = np.where(share > 0, np.minimum(near[..., 2:], next_[..., 2:]), near[..., 2:])
    between[..., 2:] = confidence
    return between * (confidence > 0)


def event_columns(rows: np.ndarray) -> np.ndarray:
    """Return the columns [E] of features [N, D] that mark single rows, as beats: ones apart among zeros."""
    is_flag = ((rows == 0) | (rows == 1)).all(0)
    return np.flatnonzero(is_flag & ~(rows[1:] * rows[:-1]).any(0))


def resample_features(rows: np.ndarray, positions: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Return features [F, D] between rows of [N, D]; each event is kept, at the position nearest to it.

    positions: ascending. events: of `event_columns`.
    """
    low = np.floor(positions).astype(int)
    share = (positions - low).astype(np.float32)[:, None]
    if not share.any() and (np.diff(low) == 1).all():
        return rows[low]
    found = rows[low] + share * (rows[np.minimum(low + 1, len(rows) - 1)] - rows[low])
    found[:, events] = 0
    marked, columns = np.nonzero(rows[:, events])
    half = np.diff(positions).mean() / 2 if len(positions) > 1 else 0.5
    inside = (marked >= positions[0] - half) & (marked < positions[-1] + half)
    places = np.searchsorted((positions[1:] + positions[:-1]) / 2, marked[inside])
    found[places, events[columns[inside]]] = 1
    return found
