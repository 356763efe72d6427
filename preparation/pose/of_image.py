"""The pose of a person in one image."""

from pathlib import Path

import numpy as np

from preparation.settings import Settings
from system.errors import ConfigError, DataError

from . import dwpose, mediapipe_pose  # noqa: F401 (estimators register themselves)
from .estimators import check_pose_estimator, follow_dancer, make_pose_estimator


def pose_of_image(image: np.ndarray, path: str | Path, settings: Settings | None = None) -> np.ndarray:
    """Return the largest person's key points [134, 3] in an image, uint8 [H, W, 3], of the file `path`.

    settings: which estimator; the usual one without. Raises ConfigError where it cannot be had, and DataError
    where there is no person.
    """
    settings = settings or Settings()
    try:
        check_pose_estimator(settings)
    except ConfigError as error:
        raise ConfigError(f"the pose of {path}: {error}; or give it with --reference_pose") from error
    points = follow_dancer(make_pose_estimator(settings), lambda: [image], frame_rate=1.0)[0]
    if not points[:, 2].any():
        fix = "take a picture of a whole person, or give the pose with --reference_pose"
        raise DataError(path, "no person is found in it", fix)
    return points
