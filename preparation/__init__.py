"""Raw dance videos with sound -> the documented data folder: what prepare_guidance.py is made of."""

from datasets.guidance.people import Detection
from system.errors import ConfigError

from .music.features import register_music_features
from .pose.estimators import register_pose_estimator

__all__ = ["ConfigError", "Detection", "register_music_features", "register_pose_estimator"]
