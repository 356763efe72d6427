"""Music and a person's pose to dances, as a diffusers pipeline; `output_dir/final` is a saved one.

Key points are in heights of the frame: x is a fraction of the width, times width over height.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.utils import BaseOutput
from torch import Tensor

from models import ModelError, MusicToPoseModel
from models.music_to_pose.sampling import sample_track

from .saved_pipeline import SavedPipeline

SHORTEST_SECONDS = 1.0


@dataclass
class MusicToPosePipelineOutput(BaseOutput):
    """key_points: float32 [T, N, K, 3], T dances of N frames; x and y in heights of the frame, confidence."""

    key_points: np.ndarray


class MusicToPosePipeline(SavedPipeline):
    """Dances for one song. music_recipe, pose_recipe: names of what made the training data's music features
    and poses, None if not recorded."""

    def __init__(
        self, model: MusicToPoseModel, scheduler: DDIMScheduler,
        music_recipe: str | None = None, pose_recipe: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler)
        self.register_to_config(music_recipe=music_recipe, pose_recipe=pose_recipe)

    @torch.no_grad()
    def __call__(
        self,
        music: np.ndarray | Tensor,
        reference_pose: np.ndarray | Tensor,
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 1.0,
        generator: torch.Generator | None = None,
        num_tracks: int = 1,
        keep_poses: np.ndarray | Tensor | None = None,
        keep_mask: np.ndarray | Tensor | None = None,
        return_dict: bool = True,
    ) -> MusicToPosePipelineOutput | tuple[np.ndarray]:
        """Return num_tracks dances to a whole song, each begun by the person of the reference pose.

        music: rows [N, D] of features as trained, one per frame of the model's frame_rate.
        reference_pose: [K, 3] with the neck and both hips; absent points stay absent in the dances.
        keep_poses, keep_mask: a track [N, K, 3], and bool [N, K], which points of which frames are kept of
        it: a frame as a whole exactly, a limb's points by where they are from their parent joints.
        """
        model = self.model
        music = self._prepare_music(music)
        reference = self._prepare_pose(reference_pose, "reference_pose", ())[None]  # [1, K, 3]
        known, keep_poses, keep_mask = self._known(keep_poses, keep_mask, reference, len(music))
        with self.progress_bar(total=num_inference_steps) as bar:
            values = sample_track(
                model, self.scheduler, music, reference[0], num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale, generator=generator, num_tracks=num_tracks, known=known,
                callback=lambda *_: bar.update(),
            )  # fmt: skip
        key_points = model.representation.decode(values, reference.expand(num_tracks, -1, -1))
        if known is not None:
            is_whole = keep_mask.all(dim=-1)[:, None, None]  # [N, 1, 1]
            key_points = torch.where(is_whole, keep_poses, key_points)
        key_points = key_points.float().cpu().numpy()  # [T, N, K, 3]
        return MusicToPosePipelineOutput(key_points) if return_dict else (key_points,)

    def _prepare_music(self, music: np.ndarray | Tensor) -> Tensor:
        """Return [N, D'] on the device. Raises ModelError."""
        config = self.model.config
        rows = np.asarray(music, np.float32)
        if rows.ndim != 2 or rows.shape[1] != config.music_channels:
            raise ModelError(f"music {list(rows.shape)}: expected [N, {config.music_channels}]")
        if not np.isfinite(rows).all():
            raise ModelError("music: NaN or infinite values")
        if len(rows) < SHORTEST_SECONDS * config.frame_rate:
            least = f"at least {SHORTEST_SECONDS:g} s are needed"
            raise ModelError(f"music of {len(rows) / config.frame_rate:.2f} s: {least}")
        return torch.from_numpy(self.model.music_features(rows)).to(self._execution_device)

    def _prepare_pose(self, pose: np.ndarray | Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return key points [*shape, K, 3] on the device. Raises ModelError."""
        pose = torch.as_tensor(pose, dtype=torch.float32)
        expected = (*shape, self.model.config.num_key_points, 3)
        if tuple(pose.shape) != expected:
            raise ModelError(f"{name} {list(pose.shape)}: expected {list(expected)}")
        if not pose.isfinite().all():
            raise ModelError(f"{name}: NaN or infinite values; absent points are [0, 0, 0]")
        return pose.to(self._execution_device)

    def _known(self, poses, mask, reference: Tensor, num_frames: int) -> tuple:
        """Return ((values, bool mask) [N, P] each or None, keep_poses, keep_mask) on the device."""
        if poses is None or mask is None:
            if poses is not mask:
                raise ModelError("keep_poses and keep_mask go together")
            return None, None, None
        poses = self._prepare_pose(poses, "keep_poses", (num_frames,))  # [N, K, 3]
        mask = torch.as_tensor(mask, dtype=torch.bool, device=poses.device)
        if mask.shape != poses.shape[:2]:
            raise ModelError(f"keep_mask {list(mask.shape)}: expected {list(poses.shape[:2])}")
        representation = self.model.representation
        values, weights = representation.encode(poses[None], reference)  # [1, N, P]
        num_points = poses.shape[1]
        columns = torch.stack([representation.columns_of([point]) for point in range(num_points)])  # [K, P]
        is_kept = (mask.float() @ columns.float() > 0) & (weights[0] > 0)  # [N, P]
        return (values[0], is_kept), poses, mask
