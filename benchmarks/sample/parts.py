"""What the processes of the sampling benchmark share: parts of a sample, and how its forwards are counted.

PyTorch only: it also runs in the original's interpreter.
"""

import torch

PARTS = ("vae_encode", "image_encoder", "reference", "guidance_encoders", "denoiser", "vae_decode")


class ForwardCounter:
    """Counts what a denoising UNet is given: one forward is one half (with reference, or without it) of one
    window, also where both halves are one batch. frames: of all forwards together."""

    def __init__(self, unet: torch.nn.Module, frames_axis: int):
        self.forwards = self.frames = 0
        self._frames_axis = frames_axis
        unet.register_forward_pre_hook(self._count)

    def restart(self) -> None:
        self.forwards = self.frames = 0

    def _count(self, unet, inputs) -> None:
        batch = inputs[0]
        self.forwards += len(batch)
        self.frames += len(batch) * batch.shape[self._frames_axis]

    def summary(self, row: dict) -> dict:
        """Return the counts, and what one forward takes, for the row of a sample."""
        seconds = row["cpu_seconds"]["denoiser"] / self.forwards
        return {
            "forwards": self.forwards, "frames_denoised": self.frames, "forward_cpu_seconds": seconds,
        }  # fmt: skip
