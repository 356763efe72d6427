"""Our networks of a benchmark's size, with random weights: time and memory do not depend on them."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.step.sizes import GUIDANCE_TYPES, Size
from models import ChampModel, FrozenEncoders, create_guidance_encoders
from models.champ import weights
from models.champ.denoising_unet import ImageDenoisingUNet, MotionDenoisingUNet


def make_champ(size: Size, device: torch.device, *, has_motion_modules: bool) -> ChampModel:
    """Return the model as training makes it; on the meta device it has shapes alone."""
    unet_class = MotionDenoisingUNet if has_motion_modules else ImageDenoisingUNet
    with device:
        base = UNet2DConditionModel(**size.unet_config())
        unet = unet_class.from_unet2d(base)
        if has_motion_modules:
            unet = unet_class.from_config({**unet.config, "motion_num_attention_heads": size.num_heads})
        encoders = create_guidance_encoders(
            list(GUIDANCE_TYPES), [3] * len(GUIDANCE_TYPES), size.unet_channels[0],
            block_out_channels=size.guidance_channels, num_attention_heads=size.num_guidance_heads,
        )  # fmt: skip
        return ChampModel(unet, base, weights.as_group(encoders, unet))


def make_frozen(size: Size, device: torch.device, precision: torch.dtype) -> FrozenEncoders:
    """Return VAE and image encoder in a precision."""
    with device:
        vae = AutoencoderKL(**size.vae_config())
        image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**size.image_encoder_config()))
    return FrozenEncoders(vae, image_encoder).to(device, dtype=precision)
