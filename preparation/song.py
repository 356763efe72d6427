"""A song for sampling: its music features, by the recipe that made those of the training data."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from datasets import DataError, VideoReader
from datasets.media.containers import open_container
from datasets.media.sound import ffmpeg_reason, read_audio, sound_stream, time_zero
from system.errors import ConfigError
from system.user_code import load_user_object

from .music.features import check_music_features, compute_music_features, music_feature_names

USUAL_RECIPE = "aist35"  # of models that do not say theirs
SILENCE = 1e-4  # of full scale
INSTEAD = "give the song's features with --music"
WHOLE = (0.0, None)  # of a song: from its start to its end


def print_note(note: str) -> None:
    print(f"note: {note}")


def song_features(
    path: str | Path, frame_rate: float, *, recipe: str | None, num_features: int,
    part: tuple[float, float | None] = WHOLE, tell: Callable[[str], object] = print_note,
) -> np.ndarray:  # fmt: skip
    """Return float32 [N, D], a row per frame of the song, from a video's first frame on.

    part: (second to begin at, how many seconds; None: all that follow). tell: is given the user's notes.
    Raises UserError where the recipe cannot be followed, or gives another number of features.
    """
    path, name = Path(path), recipe_name(recipe, tell)
    check_recipe(name)
    start = first_frame_seconds(path)
    read_audio(path, start, 1 / frame_rate)  # tells what is wrong with a file
    sound, rate = read_audio(path, start, sound_seconds(path))
    sound = sound.mean(axis=0)
    if np.abs(sound).max(initial=0) < SILENCE:
        raise DataError(path, "its sound is silent", "give a song that can be heard")
    length = len(sound) / rate - part[0]
    length = length if part[1] is None else min(length, part[1])
    num_rows = int(length * frame_rate + 1e-6)
    if num_rows < frame_rate and part == WHOLE:
        raise DataError(path, f"lasts {length:.2f} s", "give a song of at least one second")
    if num_rows < frame_rate:
        problem = f"--start_seconds and --num_seconds take {max(0.0, length):.2f} s of it"
        raise DataError(path, problem, "choose at least one second that it has")
    features = compute_music_features(name, sound, rate, part[0] + np.arange(num_rows) / frame_rate)
    check_count(path, name, features, num_features)
    return features


def recipe_name(recipe: str | None, tell: Callable[[str], object]) -> str:
    """Return the recipe that a model states, or the usual one, which is told."""
    if recipe is None:
        tell(f"the model does not say how its music features were made: {USUAL_RECIPE} is taken")
    return recipe or USUAL_RECIPE


def check_recipe(name: str, flag: str = "--song", instead: str = INSTEAD) -> None:
    """Raise ConfigError where music features of this name cannot be made of the sound that a flag gives."""
    problem = f"{flag}: the model's music features are {name}, "
    if ":" in name:
        try:
            load_user_object(name, flag)
        except ConfigError as error:
            raise ConfigError(f"{problem}which cannot be had here ({error}): {instead}") from error
    elif name not in music_feature_names():
        raise ConfigError(f"{problem}which are not made of a sound: {instead}")
    check_music_features(name)


def check_count(
    path: Path, name: str, features: np.ndarray, num_features: int, instead: str = INSTEAD
) -> None:
    """Raise DataError for features [N, D] of another D than the model was trained with."""
    if features.shape[1] != num_features:
        made = f"{name} makes {features.shape[1]} features of it"
        problem = f"{made}, the model was trained with {num_features}"
        raise DataError(path, problem, instead)


def sound_seconds(path: Path) -> float:
    """Return when a file's sound ends, or a little later, on the clock of `read_audio`. Raises DataError."""
    counted, first, last = 0.0, None, 0.0
    try:
        with open_container(path) as container:
            for frame in container.decode(sound_stream(container)):
                length = frame.samples / frame.sample_rate
                stamp = counted if frame.time is None else frame.time
                first = stamp if first is None else first
                counted, last = counted + length, max(last, stamp + length)
            zero = time_zero(container)
    except (av.FFmpegError, OSError) as error:
        problem = f"its sound cannot be read ({ffmpeg_reason(error)})"
        raise DataError(path, problem, "replace the file") from error
    return max(counted, last - (first if zero is None else zero))


def first_frame_seconds(path: str | Path) -> float:
    """Return when a video shows its first frame, on the clock of its sound; 0 for a file of sound alone."""
    try:
        return float(VideoReader(path).frame_seconds[0])
    except DataError:
        return 0.0
