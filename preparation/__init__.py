"""Raw dance videos with sound -> the documented data folder: what prepare_guidance.py is made of."""

from .errors import ConfigError
from .music_features import register_music_features
from .people import Detection
from .pose_estimators import register_pose_estimator

__all__ = ["ConfigError", "Detection", "register_music_features", "register_pose_estimator"]
