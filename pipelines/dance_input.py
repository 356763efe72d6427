"""What a dance is made of, from files: rows of music, the pose it begins from, poses to keep; and the dance.

Files hold x and y in 0..1 of the frame; the pipeline takes them in heights of the frame.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets import DataError, VideoReader
from datasets.data_folder import VIDEO_FOLDER, VIDEO_SUFFIXES, recorded_recipe
from datasets.guidance.openpose import FACE, HANDS
from datasets.guidance.track import META_NAME, Track
from datasets.guidance.tracks import TYPE_FOLDERS, open_pose, open_track
from datasets.takes import (
    check_music,
    event_columns,
    read_take_rows,
    resample_features,
    resample_key_points,
    row_positions,
    stated_frame,
)
from datasets.transforms import Size
from models.music_to_pose.representation import torso_length
from system.errors import ConfigError, UserError

from .music_to_pose_pipeline import SHORTEST_SECONDS, MusicToPosePipeline

LIMBS = {
    "head": (0, 14, 15, 16, 17, *range(FACE.start, FACE.stop)),
    "right_arm": (2, 3, 4, *range(HANDS[1].start, HANDS[1].stop)),
    "left_arm": (5, 6, 7, *range(HANDS[0].start, HANDS[0].stop)),
    "right_leg": (8, 9, 10, 21, 22, 23),
    "left_leg": (11, 12, 13, 18, 19, 20),
}


@dataclass(frozen=True)
class Music:
    """Rows of features [N, D] of a whole song, and how many there are per second."""

    rows: np.ndarray
    rate: float


@dataclass(frozen=True)
class Reference:
    """A person to dance: key points [K, 3] in 0..1 of a frame of `size` (height, width), None: not known."""

    key_points: np.ndarray
    size: Size | None

    @property
    def aspect(self) -> float:
        return self.size[1] / self.size[0] if self.size else 1.0


@dataclass(frozen=True)
class Kept:
    """What a dance keeps of a track: which seconds (None: all), and which limbs (none: the whole body)."""

    path: str | Path
    seconds: tuple[float, float] | None
    limbs: tuple[str, ...] = ()


def read_music(
    path: str | Path, num_features: int, *, fps: float | None, otherwise: float, recipe: str | None = None
) -> Music:
    """Return the music of a track; its rate is `otherwise` where nothing states one. Raises DataError.

    recipe: of the features that the model was trained with, which a data folder's metadata may contradict.
    """
    track = open_track("music", path, fps=fps)
    rows = _read_as_trained(track, num_features)
    check_music(track, rows.shape[1:])
    check_music_recipe(track, recipe)
    rate = _frame_of(track)[0] or otherwise
    if len(rows) < SHORTEST_SECONDS * rate - 1e-6:
        problem = f"{len(rows)} rows at {rate:g} per second last {len(rows) / rate:.2f} s"
        raise DataError(track.path, problem, f"give music of at least {SHORTEST_SECONDS:g} s")
    return Music(rows, rate)


def check_music_recipe(track: Track, recipe: str | None) -> None:
    """Raise DataError for music whose data folder records another recipe than the model was trained with."""
    recorded = recipe_of(track)
    if None not in (recorded, recipe) and recorded != recipe:
        problem = f"its features are {recorded}, the model was trained with {recipe}"
        raise DataError(track.path, problem, "give features that were made in the same way")


def recipe_of(track: Track) -> str | None:
    """Return what made a track of music or poses, where it lies in a data folder that records it."""
    place = _place_in_data(track)
    return recorded_recipe(place[0], [place[1]], track.type_name) if place else None


def read_reference(path: str | Path, num_points: int) -> Reference:
    """Return the pose of a file, or of a track's first frame. Raises DataError."""
    track = open_pose(path)
    size = _frame_of(track)[1]
    key_points = _read_as_trained(track, num_points, size)[0]
    if size is None:
        stated = f'write {{"height": ..., "width": ...}} into a {META_NAME} beside it'
        print(f"note: {path} does not tell the shape of its frame: it is taken as square; {stated}")
    return checked_reference(path, key_points, size)


def checked_reference(path: str | Path, key_points: np.ndarray, size: Size | None) -> Reference:
    """Return the reference. Raises DataError where it shows too little of a body."""
    try:
        torso_length(torch.from_numpy(np.asarray(key_points, np.float32))[None])
    except UserError as error:
        raise DataError(path, str(error)) from error
    return Reference(key_points, size)


def dance(
    pipeline: MusicToPosePipeline,
    music: Music,
    reference: Reference,
    kept: Kept | None = None,
    *,
    rate: float | None = None,
    **settings,
) -> np.ndarray:
    """Return dances [T, N, K, 3] in 0..1 of the reference's frame, to the end of the music.

    rate: poses per second; None: one per row of the music. settings: further arguments of the pipeline.
    Raises UserError.
    """
    model_rate = pipeline.model.config.frame_rate
    length = len(music.rows) / music.rate
    of_rows, of_model, wanted = (
        frame_seconds(length, one) for one in (music.rate, model_rate, rate or music.rate)
    )
    rows = resample_features(music.rows, row_positions(of_rows, of_model), event_columns(music.rows))
    if kept is not None:
        num_points = pipeline.model.config.num_key_points
        settings["keep_poses"], settings["keep_mask"] = read_kept(kept, num_points, reference, of_model)
    heights = np.array([reference.aspect, 1, 1], np.float32)
    dances = pipeline(rows, reference.key_points * heights, **settings).key_points / heights
    return np.stack([resample_key_points(one, row_positions(of_model, wanted)) for one in dances])


def frame_seconds(length: float, rate: float) -> np.ndarray:
    """Return when the frames of so many seconds are, float64 [N]."""
    return np.arange(max(1, int(np.ceil(length * rate - 1e-6)))) / rate


def read_kept(
    kept: Kept, num_points: int, reference: Reference, seconds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (key points [N, K, 3] in heights of the frame, what is kept of them, bool [N, K]).

    seconds: of the dance's frames, [N]. A track that does not tell its frame's size is of the reference's.
    Raises UserError.
    """
    track = open_pose(kept.path)  # a single pose, too: what a dance shall begin with
    rate, size = _frame_of(track)
    points = _read_as_trained(track, num_points, size)
    points = points * np.array([size[1] / size[0] if size else reference.aspect, 1, 1], np.float32)
    step = seconds[1] - seconds[0]
    track_seconds = np.arange(len(points)) * (1 / rate if rate else step)
    end = min(len(points) / rate if rate else len(points) * step, len(seconds) * step)
    start, stop = kept.seconds or (0.0, end)
    if stop > end + 1e-6:
        span = f"--keep_seconds {start:g} {stop:g}"
        raise ConfigError(f"{span}: {kept.path} and the music share {end:.2f} s; choose a span within them")
    is_inside = (seconds >= start) & (seconds < stop)
    if not is_inside.any():
        problem = f"no frame lies between them, they are {step:.3g} s apart"
        raise ConfigError(f"--keep_seconds {start:g} {stop:g}: {problem}; choose a longer span")
    is_kept = np.zeros((len(seconds), num_points), bool)
    limbs = [point for name in kept.limbs for point in LIMBS[name] if point < num_points]
    is_kept[np.ix_(is_inside, limbs or range(num_points))] = True
    return resample_key_points(points, row_positions(track_seconds, seconds)), is_kept


def _read_as_trained(track: Track, num_channels: int, frame_size: Size | None = None) -> np.ndarray:
    """Return the rows of a track. Raises DataError, which knows that the model is trained already."""
    try:
        return read_take_rows(track, num_channels, frame_size)
    except DataError as error:
        if "--guidance_input_channels" not in error.fix:
            raise
        trained = f"the model was trained with {num_channels} of {track.type_name}"
        raise DataError(error.path, error.problem, f"{trained}: extract it in the same way") from error


def _place_in_data(track: Track) -> tuple[Path, str] | None:
    """Return (data folder, sample) that a track belongs to; None: it lies elsewhere."""
    path = track.path.absolute()
    if path.parent.name != TYPE_FOLDERS[track.type_name]:
        return None
    return path.parent.parent, path.stem if track.files is None else path.name


def _frame_of(track: Track) -> tuple[float | None, Size | None]:
    """Return (rows per second, (height, width) of the frame), of its files or of the data folder it lies in.

    None where neither they nor the sample's metadata or video tell it.
    """
    rate, size = track.fps, track.kind.stated_size(track, ()) if track.kind.on_person else None
    place = _place_in_data(track)
    if place is None:
        return rate, size
    stated_rate, stated_size = stated_frame(*place)
    rate, size = rate or stated_rate, size or stated_size
    videos = [place[0] / VIDEO_FOLDER / f"{place[1]}{suffix}" for suffix in VIDEO_SUFFIXES]
    video = next((one for one in videos if one.is_file()), None)
    if video is not None and (rate is None or size is None):
        reader = VideoReader(video)
        rate, size = rate or reader.frame_rate, size or reader.size
    return rate, size
