"""A raw video as the source of a dance: its poses, its music's features and its sound, at the model's times.

By the parts that prepare training data, so that what a model gets is what it was trained with.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets import DataError, VideoReader
from datasets.guidance.people import describe_frames, find_jumps
from datasets.takes import resample_key_points, row_positions
from pipelines.dance_input import frame_seconds
from preparation.piece_writing import Music, Piece, read_music
from preparation.pose import dwpose, mediapipe_pose  # noqa: F401 (estimators register themselves)
from preparation.pose.estimators import (
    NUM_POINTS,
    check_pose_estimator,
    follow_dancer,
    make_pose_estimator,
    pose_estimator_names,
)
from preparation.settings import Settings
from preparation.song import check_count, check_recipe, recipe_name
from system.errors import ConfigError

USUAL_ESTIMATOR = "mediapipe"  # of models that do not say theirs
FEW_FRAMES_SHARE = 0.9  # of frames in which the dancer is found
AROUND = 2  # frames more on either side, from which poses at the model's times are taken
NO_MUSIC = "give --music or --song, or (with a model of poses, too) --guidance_types pose"


@dataclass(frozen=True)
class DrivingVideo:
    """A part of a video, and the times in it that rows of guidance belong to."""

    reader: VideoReader
    start_seconds: float  # of the part, from the first frame on
    row_seconds: np.ndarray  # [N], from the start of the part on
    tell: Callable[[str], object]  # is given the user's notes

    @property
    def file_seconds(self) -> float:
        """The start of the part on the clock of the file and its sound."""
        return float(self.reader.frame_seconds[0]) + self.start_seconds

    def poses(
        self, settings: Settings, on_progress: Callable[[int, int], object],
        change: Callable[[np.ndarray, float], np.ndarray] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Return the largest person's key points in 0..1 of the frame, float32 [N, 134, 3].

        on_progress(frames done, of all): the video is seen twice. change(points, frame rate): done to the
        poses of the video's own frames. Raises DataError where nobody is seen.
        """
        seconds = self.reader.frame_seconds - self.file_seconds
        first = max(0, int(np.searchsorted(seconds, 0.0, "right")) - 1 - AROUND)
        last = min(len(seconds), int(np.searchsorted(seconds, self.row_seconds[-1])) + 1 + AROUND)
        num_done = 0

        def frames() -> Iterator[np.ndarray]:
            nonlocal num_done
            for number, frame in enumerate(self.reader.iterate()):
                if number >= last:
                    return
                if number >= first:
                    yield frame
                    num_done += 1
                    on_progress(num_done, 2 * (last - first))

        rate, seconds = self.reader.frame_rate, seconds[first:last]
        points = follow_dancer(make_pose_estimator(settings), frames, rate)
        self._describe(points, seconds)
        points = points if change is None else change(points, rate)
        return resample_key_points(points, row_positions(seconds, self.row_seconds))

    def _describe(self, points: np.ndarray, seconds: np.ndarray) -> None:
        found = int(points[..., 2].any(axis=1).sum())
        if not found:
            raise DataError(self.reader.path, "no person is found in it", "use a video that shows a dancer")
        if found < FEW_FRAMES_SHARE * len(points):
            self.tell(f"the dancer is found in {found} of {len(points)} frames only")
        for what, where in find_jumps(points, self.reader.size, seconds).items():
            self.tell(f"the pose {what} in frames {describe_frames(where)}")

    def music(self, recipe: str | None, num_features: int) -> tuple[str, Music]:
        """Return (the recipe's name, the music by it). Raises UserError where it cannot be had."""
        path = self.reader.path
        if not self.reader.has_audio:
            raise DataError(path, "has no sound, and the model was trained with music", NO_MUSIC)
        name = recipe_name(recipe, self.tell)
        check_recipe(name, "--driving_video", NO_MUSIC)
        rows = range(len(self.row_seconds))
        rate = 1 / (self.row_seconds[1] - self.row_seconds[0]) if len(rows) > 1 else self.reader.frame_rate
        piece = Piece(path.stem, 0, 1, rows, self.file_seconds, self.row_seconds, rate)
        try:
            music = read_music(piece, path, name)
        except DataError as error:
            raise DataError(error.path, error.problem, NO_MUSIC) from error
        check_count(path, name, music.features, num_features, NO_MUSIC)
        for note in music.notes:
            self.tell(note)
        return name, music


def open_driving_video(
    path: str | Path, start_seconds: float, num_seconds: float | None, rate: float,
    tell: Callable[[str], object],
) -> DrivingVideo:  # fmt: skip
    """Return a part of a video, with `rate` rows per second; None: to its end. Raises DataError."""
    reader = VideoReader(path)
    for note in reader.notes:
        tell(f"{path}: {note}")
    length = float(reader.frame_seconds[-1] - reader.frame_seconds[0]) + 1 / reader.frame_rate
    if start_seconds >= length:
        problem = f"lasts {length:.2f} s, --start_seconds is {start_seconds:g}"
        raise DataError(path, problem, "choose an earlier start")
    left = length - start_seconds
    if num_seconds is not None and num_seconds > left + 1e-6:
        tell(f"{path}: ends {left:.2f} s after --start_seconds; so long is the video made")
    return DrivingVideo(reader, start_seconds, frame_seconds(min(left, num_seconds or left), rate), tell)


def choose_estimator(
    name: str | None, dwpose_dir: str | None, recipe: str | None, tell: Callable[[str], object]
) -> Settings:
    """Return settings with the estimator to take: --pose_estimator, else that of the model's training data.

    Raises ConfigError where the model's cannot be had here.
    """
    if name is None and recipe is None:
        tell(f"the model does not say how its poses were made: {USUAL_ESTIMATOR} is taken")
    elif name is None and recipe not in pose_estimator_names() and ":" not in recipe:
        problem = f"the model's poses are {recipe}, which no estimator finds in a video"
        fix = f"give --poses, or take another's all the same with --pose_estimator {USUAL_ESTIMATOR}"
        raise ConfigError(f"--driving_video: {problem}: {fix}")
    elif None not in (name, recipe) and name != recipe:
        tell(f"the model was trained with poses of {recipe}, those of {name} are taken as you say")
    settings = Settings(pose_estimator=name or recipe or USUAL_ESTIMATOR, dwpose_dir=dwpose_dir)
    if settings.pose_estimator == "dwpose" and dwpose_dir is None:
        raise ConfigError("the poses are those of dwpose: give --dwpose_dir, the folder of its models")
    check_pose_estimator(settings)
    return settings


def check_num_points(num_points: int) -> None:
    """Raise ConfigError for a model of other key points than estimators find."""
    if num_points != NUM_POINTS:
        problem = f"--driving_video: estimators find {NUM_POINTS} key points"
        raise ConfigError(f"{problem}, the model was trained with {num_points}: give --poses")
