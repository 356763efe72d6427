"""The models that a page serves: loaded once, and looked at for what they can be asked."""

from pathlib import Path

from pipelines.champ_pipeline import ChampPipeline
from pipelines.loading import load_music_to_pose
from preparation.pose.of_image import check_pose_estimator
from preparation.settings import Settings
from preparation.song import USUAL_RECIPE, check_recipe
from system.errors import ConfigError

from .request import Served

TYPES = ("pose", "music")


def look_at_models(
    model_path: Path, pipeline: ChampPipeline, music_to_pose_path: Path | None, flags: dict[str, object]
) -> Served:
    """Return what is served. Raises UserError where the page cannot serve the models."""
    types = tuple(pipeline.guidance_encoders.guidance_types)
    if not set(types) & set(TYPES):
        expected = "the page takes models of pose, of music or of both"
        raise ConfigError(f"--model_path {model_path} was trained with {', '.join(types)}: {expected}")
    config, refusals = pipeline.config, {}
    if config.frame_rate is None:
        problem = f"--model_path {model_path} does not say its training videos' frame rate"
        raise ConfigError(f"{problem}: sample it with sample_guidance.py --frame_rate")
    recipe = config.get("music_recipe")
    if music_to_pose_path is not None:
        recipe = load_music_to_pose("--music_to_pose_path", music_to_pose_path).config.music_recipe
    for kind, check in (
        ("video", lambda: check_pose_estimator(Settings()) if "pose" in types else None),
        ("song", lambda: check_recipe(recipe or USUAL_RECIPE)),
    ):
        try:
            check()
        except ConfigError as error:
            refusals[kind] = str(error)
    stride = config.frame_stride
    return Served(model_path, music_to_pose_path, types, config.frame_rate, stride, flags, refusals)
