"""The original CHAMP's networks of a benchmark's size, with random weights, from the user's own checkout.

Runs in the original's interpreter; the checkout must be on Python's path.
"""

import torch
from diffusers import AutoencoderKL
from sizes import GUIDANCE_TYPES, Size
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

IMAGE_SETTINGS = {"use_motion_module": False, "unet_use_temporal_attention": False}


def make_frozen(size: Size, precision: torch.dtype) -> tuple:
    """Return (VAE, image encoder)."""
    vae = AutoencoderKL(**size.vae_config())
    image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**size.image_encoder_config()))
    return tuple(part.requires_grad_(False).eval().to(dtype=precision) for part in (vae, image_encoder))


def make_networks(size: Size, motion_settings: dict | None) -> tuple:
    """Return (reference UNet, denoising UNet, {guidance type: encoder}).

    motion_settings: `unet_additional_kwargs` of its configuration; None: without motion modules.
    """
    from models.guidance_encoder import GuidanceEncoder
    from models.unet_2d_condition import UNet2DConditionModel
    from models.unet_3d import UNet3DConditionModel

    if motion_settings is not None:
        motion_settings["motion_module_kwargs"]["num_attention_heads"] = size.num_heads
    reference_unet = UNet2DConditionModel(**size.unet_config())
    denoising_unet = UNet3DConditionModel(**size.unet_config(), **(motion_settings or IMAGE_SETTINGS))
    encoders = {
        name: GuidanceEncoder(size.unet_channels[0], 3, size.guidance_channels, size.num_guidance_heads)
        for name in GUIDANCE_TYPES
    }
    return reference_unet, denoising_unet, encoders
