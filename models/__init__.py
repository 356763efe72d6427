"""The CHAMP model, composed of diffusers classes, nothing of it copied; the model of dances from music."""

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
from .music_to_pose.model import MusicToPoseModel

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
    "MusicToPoseModel",
    "PoseGuidanceEncoder",
    "create_guidance_encoders",
    "register_guidance_encoder",
]
