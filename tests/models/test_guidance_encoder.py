"""Guidance encoders: a fresh one passes on what it is given; statistics; wrong settings are named."""

import pytest
import torch

from models import GuidanceEncoders, ModelError, create_guidance_encoders


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


def test_music_statistics(encoders):
    music = encoders()["music"]
    music.set_feature_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.0, 1e-9]))
    assert torch.equal(
        music.feature_std, torch.tensor([2.0, 1.0, 1.0])
    )  # constant features are left unscaled
    condition = torch.tensor([[[3.0, 2.0, 3.0]]])
    standard = encoders()["music"]
    torch.testing.assert_close(
        music(condition), standard(torch.tensor([[[1.0, 0.0, 0.0]]]))
    )  # also one frame
    with pytest.raises(ModelError, match="2 features for an encoder of 3"):
        music.set_feature_statistics(torch.zeros(2), torch.ones(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["pose"], [5, 3], 32), "1 guidance types .pose. but 2"),
        ((["pose", "pose"], [5, 5], 32), "repeat"),
        ((["pose"], [5], 32, {"block_out_channels": (16, 24)}), "divisible by 32"),
    ],
)
def test_wrong_encoder_settings_are_named(arguments, message):
    *arguments, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(ModelError, match=message):
        create_guidance_encoders(*arguments, **options)


@pytest.mark.parametrize("name", ["keys", "a.b"])
def test_impossible_type_names_are_refused(name):
    with pytest.raises(ModelError, match="rename"):
        GuidanceEncoders.from_encoders(create_guidance_encoders([name], [3], 32), 32, 128)
