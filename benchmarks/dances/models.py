"""A music-to-pose model, as the benchmark of dances asks it."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from models.music_to_pose.sampling import window_starts
from pipelines.music_to_pose_pipeline import MusicToPosePipeline


class Model:
    """A saved pipeline, and how it is asked."""

    def __init__(self, path: Path, arguments: argparse.Namespace) -> None:
        self.pipeline = MusicToPosePipeline.from_pretrained(path).to(arguments.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.model, self.config = self.pipeline.model.eval(), self.pipeline.model.config
        names = ("num_inference_steps", "guidance_scale")
        self.settings = {name: getattr(arguments, name) for name in names}

    def dance(self, rows: np.ndarray, reference: np.ndarray, seed: int, num_tracks: int = 1) -> np.ndarray:
        """Return tracks [T, N, K, 3] for a song's rows [N, D]."""
        generator = torch.Generator().manual_seed(seed)
        result = self.pipeline(rows, reference, generator=generator, num_tracks=num_tracks, **self.settings)
        return result.key_points.astype(np.float64)

    def mean_pose(self, reference: np.ndarray, num_frames: int) -> np.ndarray:
        """Return the mean of the training data's values as a track [N, K, 3] of the reference's person."""
        values = self.model.pose_mean.expand(1, num_frames, -1)
        pose = torch.as_tensor(reference, dtype=torch.float32, device=values.device)[None]
        return self.model.representation.decode(values, pose)[0].double().cpu().numpy()

    def borders(self, num_frames: int) -> list[int]:
        """Return the frames at which a window of the sampler begins."""
        return window_starts(num_frames, min(self.config.sequence_length, num_frames))[1:]
