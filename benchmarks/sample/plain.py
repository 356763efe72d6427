"""Sampling without a pipeline: networks called once each, window by window.

What the steps and windows of a sample require at least, to be timed alone; and the original's scheme of
windows, which our pipeline does not have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from datasets.transforms import clip_image_transform
from models import ChampModel, GuidanceFeatures
from models.champ.reference_attention import Reference
from models.frozen import FrozenEncoders


@dataclass(frozen=True)
class Encoded:
    """What stays the same over the steps of one clip; features are those of all its frames."""

    image_tokens: Tensor  # [1, L, D]
    bank: dict[str, Reference]
    features: GuidanceFeatures  # [1, F, ...]

    def features_of(self, frames: Tensor) -> GuidanceFeatures:
        return GuidanceFeatures(*(part if part is None else part[:, frames] for part in self.features))


def champ_windows(num_frames: int, context_frames: int, context_overlap: int) -> list[Tensor]:
    """Return the frames of the original's windows: they never move, the last wraps to the beginning."""
    if num_frames <= context_frames:
        return [torch.arange(num_frames)]
    starts = range(0, num_frames, context_frames - context_overlap)
    return [(start + torch.arange(context_frames)) % num_frames for start in starts]


class PlainSampler:
    """One clip at a time."""

    def __init__(self, model: ChampModel, frozen: FrozenEncoders) -> None:
        self.model, self.frozen = model, frozen

    @torch.no_grad()
    def encode(self, reference: Tensor, guidance: dict[str, Tensor]) -> Encoded:
        """reference [3, H, W] in [-1, 1]; guidance {type: [F, ...]}."""
        clip_images = clip_image_transform(reference)[None].to(reference.device)
        tokens = self.frozen.encode_image_tokens(clip_images)
        latents = self.frozen.encode_reference(reference[None])
        bank = self.model.project_reference(self.model.encode_reference(latents, tokens))
        guidance = {name: condition[None] for name, condition in guidance.items()}
        return Encoded(tokens, bank, self.model.encode_guidance(guidance, tuple(latents.shape[-2:])))

    @torch.no_grad()
    def halves(self, latents: Tensor, timestep: Tensor, encoded: Encoded, frames: Tensor) -> tuple:
        """Return the predictions [1, n, 4, h, w] of a window with the reference and without it."""
        tokens, features = encoded.image_tokens, encoded.features_of(frames)
        noisy, timesteps = latents[:, frames], timestep.expand(1)
        conditional = self.model.denoise(noisy, timesteps, tokens, encoded.bank, features)
        return conditional, self.model.denoise(noisy, timesteps, torch.zeros_like(tokens), None, features)

    def sample_as_champ(
        self, encoded: Encoded, latents: Tensor, scheduler: DDIMScheduler, windows: Sequence[Tensor],
        guidance_scale: float,
    ) -> Tensor:  # fmt: skip
        """Return frames [F, 3, H, W] in [-1, 1] of noise [1, F, 4, h, w]: windows are averaged as they are.

        scheduler: its steps are set.
        """
        for timestep in scheduler.timesteps:
            total, counts = torch.zeros_like(latents), torch.zeros(latents.shape[1], device=latents.device)
            for frames in windows:
                conditional, unconditional = self.halves(latents, timestep, encoded, frames)
                total[:, frames] += unconditional + guidance_scale * (conditional - unconditional)
                counts[frames] += 1
            prediction = total / counts[:, None, None, None]
            latents = scheduler.step(prediction, timestep, latents).prev_sample
        return self.frozen.decode_frames(latents)[0]
