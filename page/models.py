"""The models that a page serves, looked at for what they can be asked."""

from collections.abc import Callable
from pathlib import Path

from pipelines.champ_pipeline import ChampPipeline
from pipelines.loading import load_music_to_pose
from preparation.song import USUAL_RECIPE, check_recipe
from sampling.driving_video import check_num_points, choose_estimator
from system.errors import ConfigError

from .request import Served

TYPES = ("pose", "music")


def look_at_models(
    model_path: Path, pipeline: ChampPipeline, music_to_pose_path: Path | None, flags: dict, estimator: dict
) -> Served:
    """Return what is served. flags: of every job; estimator: --pose_estimator and --dwpose_dir.

    Raises UserError where the page cannot serve the models.
    """
    config, encoders = pipeline.config, pipeline.guidance_encoders.config
    channels = dict(zip(encoders.guidance_types, encoders.guidance_input_channels, strict=True))
    if not set(channels) & set(TYPES):
        expected = "the page takes models of pose, of music or of both"
        raise ConfigError(f"--model_path {model_path} was trained with {', '.join(channels)}: {expected}")
    if config.frame_rate is None:
        problem = f"--model_path {model_path} does not say its training videos' frame rate"
        raise ConfigError(f"{problem}: sample it with sample_guidance.py --frame_rate")
    recipes = [config.get("music_recipe")] if "music" in channels else []
    if music_to_pose_path is not None:
        recipes.append(load_music_to_pose("--music_to_pose_path", music_to_pose_path).config.music_recipe)

    def find_poses() -> None:
        if "pose" in channels:
            check_num_points(channels["pose"])
            choose_estimator(*estimator.values(), config.get("pose_recipe"), lambda note: None)

    def hear(*names: str | None) -> None:
        for name in names:
            check_recipe(name or USUAL_RECIPE, "another sound", "choose an example")

    refusals = {"video": _reason(find_poses), "song": _reason(lambda: hear(*recipes))}
    return Served(
        model_path, music_to_pose_path, tuple(channels), config.frame_rate, config.frame_stride, flags,
        estimator,
        hears_videos="music" in channels and not _reason(lambda: hear(recipes[0])),
        refusals={kind: reason for kind, reason in refusals.items() if reason},
    )  # fmt: skip


def _reason(check: Callable[[], None]) -> str:
    """Return why a check fails, or an empty text."""
    try:
        check()
    except ConfigError as error:
        return str(error)
    return ""
