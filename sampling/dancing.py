"""What a model of dances is given: music, of features or a song, and who dances, of a pose or an image."""

import numpy as np

from datasets.media.pictures import read_image
from pipelines.dance_input import Music, Reference, checked_reference, read_music, read_reference
from pipelines.music_to_pose_pipeline import MusicToPosePipeline
from preparation.pose.of_image import pose_of_image
from preparation.song import WHOLE, song_features


def read_or_hear(
    pipeline: MusicToPosePipeline, music: str | None, song: str | None, rates: tuple[float | None, float],
    part: tuple[float, float | None] = WHOLE,
) -> Music:  # fmt: skip
    """Return the features of --music, or those made of a part of --song. Raises UserError.

    rates: of --music, rows per second: as a flag says, else where nothing states it.
    """
    config, recipe = pipeline.model.config, pipeline.config.music_recipe
    num_features = config.music_channels
    if song is None:
        return read_music(music, num_features, fps=rates[0], otherwise=rates[1], recipe=recipe)
    rows = song_features(song, config.frame_rate, recipe=recipe, num_features=num_features, part=part)
    return Music(rows, config.frame_rate)


def find_reference(
    pose_path: str | None, image_path: str | None, num_points: int, image: np.ndarray | None = None
) -> Reference:
    """Return the person of a pose file, else of an image (which is read unless given). Raises UserError."""
    if pose_path is not None:
        return read_reference(pose_path, num_points)
    image = read_image(image_path) if image is None else image
    return checked_reference(image_path, pose_of_image(image, image_path)[:num_points], image.shape[:2])
