"""A fresh guidance encoder passes on what it is given."""

import pytest
import torch

from models import create_guidance_encoders


@pytest.mark.parametrize("widths", [(16, 32, 96, 256), (8, 16, 32, 64)])
@pytest.mark.parametrize("guidance_type, channels", [("pose", 18), ("depth", 3)])
def test_two_conditions_are_told_apart_before_any_training(guidance_type, channels, widths):
    torch.manual_seed(0)
    encoders = create_guidance_encoders([guidance_type], [channels], 8, block_out_channels=widths)
    encoder = encoders[guidance_type]
    condition = torch.rand(1, 2, channels, 64, 64)
    if guidance_type == "pose":
        condition, options = torch.rand(1, 2, channels, 3), {"image_size": (64, 64)}
    else:
        options = {}
    with torch.no_grad():
        hidden = []
        encoder.attention.norm.register_forward_hook(lambda *call: hidden.append(call[-1]))
        encoder(condition, **options)
    first, second = hidden[0]  # normalised: their values are of size 1
    assert (first - second).square().mean().sqrt() > 0.1
