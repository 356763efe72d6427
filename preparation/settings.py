"""The settings that decide what a sample looks like. A sample remembers them: others make another sample."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """One field per flag of prepare_guidance.py; prepare_guidance.py --help explains them."""

    resolution: int = 512  # of the shorter side; 0: as it is
    max_seconds: float = 30.0  # 0: no limit
    min_seconds: float = 1.0
    scene_cuts: bool = True
    pose_estimator: str = "mediapipe"
    pose_format: str = "json"  # or npy
    pose_stride: int = 1  # the estimator runs on every n-th frame
    dwpose_dir: str | None = None
    music_features: str = "aist35"
    music_file: str | None = None

    def fingerprint(self) -> dict:
        """Return what a finished sample is compared by. Files count by name and size, wherever they lie."""
        values = {
            "resolution": self.resolution, "max_seconds": self.max_seconds, "min_seconds": self.min_seconds,
            "scene_cuts": self.scene_cuts, "pose_estimator": self.pose_estimator,
            "pose_format": self.pose_format, "pose_stride": self.pose_stride,
            "music_features": self.music_features,
        }  # fmt: skip
        if self.dwpose_dir is not None and self.pose_estimator == "dwpose":
            models = sorted(Path(self.dwpose_dir).glob("*.onnx"))
            values["dwpose_files"] = {path.name: path.stat().st_size for path in models}
        return values
