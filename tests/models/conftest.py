"""A tiny Stable Diffusion folder and the models and inputs made from it."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from models import ChampModel, create_guidance_encoders

TOKEN_WIDTH = 16
UNET_CONFIG = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "cross_attention_dim": TOKEN_WIDTH,
    "attention_head_dim": 2,
}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A folder with unet/ in Stable Diffusion's layout."""
    folder = tmp_path_factory.mktemp("tiny_base")
    torch.manual_seed(0)
    UNet2DConditionModel(**UNET_CONFIG).save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def encoders():
    """Makes small guidance encoders whose outputs are not zero; pose has 5 points, music 3 features."""

    def make(types=("music", "pose"), channels=(3, 5), width=32, **options):
        torch.manual_seed(1)
        made = create_guidance_encoders(
            list(types),
            list(channels),
            width,
            block_out_channels=(8, 8, 16, 32),
            num_attention_heads=2,
            **options,
        )
        return wake(made)

    return make


@pytest.fixture
def make_model(tiny_base, encoders):
    """Makes a tiny model with no zero layers left, so that no path is dead."""

    def make(motion_modules=True, **options):
        model = ChampModel.from_pretrained_sd(tiny_base, encoders(**options), motion_modules=motion_modules)
        torch.manual_seed(2)
        wake({"model": model})
        return model

    return make


def wake(modules):
    """Fills every zero parameter but the biases of norms with small random values."""
    with torch.no_grad():
        for module in modules.values():
            for parameter in module.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
    return modules


@pytest.fixture
def make_inputs():
    """Makes keyword arguments of ChampModel.forward for 8x8 latents."""

    def make(num_clips=2, num_frames=3, guidance=None, seed=3):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        if guidance is None:
            points = torch.rand(num_clips, num_frames, 5, 3, generator=generator)
            guidance = {"music": normal(num_clips, num_frames, 3), "pose": points}
        return {
            "noisy_latents": normal(num_clips, num_frames, 4, 8, 8),
            "timesteps": torch.randint(0, 1000, (num_clips,), generator=generator),
            "reference_latents": normal(num_clips, 4, 8, 8),
            "image_tokens": normal(num_clips, 1, TOKEN_WIDTH),
            "guidance": guidance,
        }

    return make
