"""The CHAMP model: composed of diffusers classes, nothing of it copied."""

# diffusers looks here for its base class; without it no pipeline could load our components.
from diffusers import ModelMixin

from system.errors import ModelError

from .champ.champ_model import ChampModel
from .champ.denoising_unet import ImageDenoisingUNet, MotionDenoisingUNet
from .frozen import FrozenEncoders
from .guidance_encoder import (
    ImageGuidanceEncoder,
    MusicGuidanceEncoder,
    MusicMapGuidanceEncoder,
    PoseGuidanceEncoder,
    create_guidance_encoders,
    register_guidance_encoder,
)
from .guidance_group import GuidanceEncoders, GuidanceFeatures

__all__ = [
    "ChampModel",
    "FrozenEncoders",
    "GuidanceEncoders",
    "GuidanceFeatures",
    "ImageDenoisingUNet",
    "ImageGuidanceEncoder",
    "ModelError",
    "ModelMixin",
    "MotionDenoisingUNet",
    "MusicGuidanceEncoder",
    "MusicMapGuidanceEncoder",
    "PoseGuidanceEncoder",
    "create_guidance_encoders",
    "register_guidance_encoder",
]
