"""The encoder of the motion stage's feature cache.

What is computed for the cache is what training would compute, in batches of the same shape.
"""

import contextlib
import math
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .building import filled_up


class FeatureEncoder:
    """A model's frozen guidance encoders and reference UNet, as a builder of the cache calls them.

    batch_shape: clips of a batch, frames of a clip; latent_size (h, w): of the largest clip. Results are on
    the CPU, of `dtype`: the one that autocast makes of them.
    """

    def __init__(
        self, model: nn.Module, accelerator: Accelerator, *, batch_shape: tuple[int, int],
        latent_size: tuple[int, int], dtype: torch.dtype,
    ):  # fmt: skip
        self.model, self.accelerator, self.latent_size, self.dtype = model, accelerator, latent_size, dtype
        self.batch_size, self.num_frames = batch_shape[0], math.prod(batch_shape)
        self.guidance_types = model.guidance_encoders.frame_by_frame_types

    def feature_shape(self, latent_size: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of one frame's features of a type, [C, h, w]."""
        return (self.model.guidance_encoders.config.spatial_channels, *latent_size)

    def on_device(self) -> AbstractContextManager:
        return contextlib.nullcontext()  # the model is there

    @torch.no_grad()
    def encode_guidance(
        self, conditions: dict[str, Tensor], latent_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return {type: [n, C, h, w]} for conditions {type: [n, ...]} of at most num_frames frames."""
        features = {}
        for name, condition in conditions.items():
            frames = filled_up(condition, self.num_frames)[None].to(self.accelerator.device)
            with self.accelerator.autocast():
                feature = self.model.guidance_encoders.encode_type(name, frames, latent_size)
            features[name] = feature[0, : len(condition)].to("cpu", self.dtype)
        return features

    @torch.no_grad()
    def encode_bank(self, reference_latents: Tensor, image_tokens: Tensor) -> dict[str, Tensor]:
        """Return {processor name: [L, C]} for a sample's reference_latents [4, h, w], image_tokens [L, D]."""
        parts = (filled_up(part[None].float(), self.batch_size) for part in (reference_latents, image_tokens))
        batch = [part.to(self.accelerator.device) for part in parts]
        with self.accelerator.autocast():
            bank = self.model.encode_reference(*batch)
        return {name: tokens[0].to("cpu", self.dtype) for name, tokens in bank.items()}

    @property
    def bank_bytes(self) -> int:
        """The size of the largest clip's bank: one token per latent pixel, at each attention's level."""
        unet, num_values = self.model.reference_unet, 0
        for name, module in unet.named_modules():
            if name.endswith(".attn1"):
                shrink = 2 ** _level(name, last_level=len(unet.down_blocks) - 1)
                num_tokens = math.prod(math.ceil(side / shrink) for side in self.latent_size)
                num_values += num_tokens * module.to_q.in_features
        return num_values * self.dtype.itemsize


def _level(name: str, last_level: int) -> int:
    """Return how often a UNet halves its input before the module of this name."""
    part, index, *_ = name.split(".")
    if part == "mid_block":
        return last_level
    return int(index) if part == "down_blocks" else last_level - int(index)
