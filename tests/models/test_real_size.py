"""The model at Stable Diffusion 1.5's size, on the meta device: keys and shapes of the original's files."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from models import ChampModel, ImageGuidanceEncoder
from models.champ import weights
from models.champ.denoising_unet import MotionDenoisingUNet

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
SD15_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


@pytest.fixture(scope="module")
def real_model() -> ChampModel:
    with torch.device("meta"):
        base = UNet2DConditionModel(**SD15_UNET)
        unet = MotionDenoisingUNet.from_unet2d(base)
        encoders = {"depth": ImageGuidanceEncoder(320, 3)}
        return ChampModel(unet, base, weights.as_group(encoders, unet))


def original_shapes(name: str) -> dict[str, list[int]]:
    path = GOLDEN / f"keys_{name}.json.gz"
    if not path.is_file():
        pytest.skip(f"no recorded keys of the original: {path}")
    with gzip.open(path) as file:
        return json.load(file)


def shapes(state: dict) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in state.items()}


def test_denoising_unet(real_model):
    unet = real_model.unet.state_dict()
    image_keys = {key: value for key, value in unet.items() if ".motion_modules." not in key}
    ours = shapes(image_keys | weights.motion_keys_to_champ(unet))
    assert ours == original_shapes("denoising_unet_with_motion")
    assert shapes(weights.motion_keys_to_champ(unet)) == original_shapes("motion_module")


def test_reference_unet(real_model):
    state = real_model.reference_unet.state_dict()
    ours = {
        key: value for key, value in state.items() if not key.startswith(weights.REFERENCE_KEYS_NOT_IN_CHAMP)
    }
    assert shapes(ours) == original_shapes("reference_unet")


def test_guidance_encoder(real_model):
    ours = shapes(weights.official_encoder_state(real_model.guidance_encoders, "depth"))
    theirs = original_shapes("guidance_encoder")
    assert ours == {key: theirs[key] for key in ours}
    never_run = ("attentions.0.", "attentions.1.", "attentions.2.", "attentions.3.", "attentions.4.")
    assert all(key.startswith((*never_run, "guidance_attention.")) for key in theirs.keys() - ours.keys())
    assert not real_model.guidance_encoders.projections


def test_numbers_of_parameters(real_model):
    """Stable Diffusion 1.5's UNet has 859.5 million, AnimateDiff's motion modules 453.2 million."""
    motion = real_model.motion_parameter_names()
    sizes = {name: parameter.numel() for name, parameter in real_model.named_parameters()}
    assert sum(size for name, size in sizes.items() if name.startswith("reference_unet.")) == 859_520_964
    assert sum(sizes[name] for name in motion) == 453_209_280
    assert (
        len([name for name in real_model.unet.attn_processors if name.endswith("attn1.processor")]) == 16 + 21
    )
