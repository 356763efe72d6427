"""LPIPS against its formula, over networks laid out as torchvision has them."""

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.metrics.perceptual import BACKBONES, PerceptualNetwork, lpips
from system.errors import UserError

ALEX_TAPS, VGG_TAPS = (1, 4, 7, 9, 11), (3, 8, 15, 22, 29)


def torchvision_alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(), nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def torchvision_vgg16() -> nn.Sequential:
    layers, channels = [], 3
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def network_of(name: str, features: nn.Sequential) -> PerceptualNetwork:
    convolutions = {
        place: (layer.weight.data, layer.bias.data)
        for place, layer in enumerate(features)
        if isinstance(layer, nn.Conv2d)
    }
    heads = [torch.rand(1, width, 1, 1) for width in BACKBONES[name].widths]
    return PerceptualNetwork(name, convolutions, heads)


def by_hand(features, taps, heads, first, second):
    """The paper's formula for two images [3, H, W] in the network's own range."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    total, current = 0.0, []
    for image in (first, second):
        current.append(torch.from_numpy((image - shift[:, None, None]) / scale[:, None, None]).float()[None])
    for place, layer in enumerate(features[: taps[-1] + 1]):
        current = [layer(one) for one in current]
        if place in taps:
            units = [(one / one.norm(dim=1, keepdim=True).clamp(min=1e-10))[0].double() for one in current]
            weights = heads[taps.index(place)].double().reshape(-1)
            difference = (units[0] - units[1]) ** 2
            total += float((difference * weights[:, None, None]).sum(dim=0).mean())
    return total


@pytest.fixture(scope="module")
def frames():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (2, 3, 64, 48, 3), dtype=np.uint8)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "make", "taps"), [("alex", torchvision_alexnet, ALEX_TAPS), ("vgg", torchvision_vgg16, VGG_TAPS)]
)
def test_the_formula_by_hand(name, make, taps, frames):
    torch.manual_seed(0)
    features = make()
    network = network_of(name, features)
    heads = [getattr(network, f"head_{place}") for place in range(5)]
    assert BACKBONES[name].shapes == {
        place: tuple(layer.weight.shape)
        for place, layer in enumerate(features)
        if isinstance(layer, nn.Conv2d)
    }
    pair = [one[:1, :32, :32] if name == "vgg" else one[:1] for one in frames]
    shown = [one[0].transpose(2, 0, 1) / 255 for one in pair]
    expected = by_hand(features, taps, heads, *(2 * image - 1 for image in shown))
    assert lpips(*pair, network) == pytest.approx([expected], rel=1e-4)
    legacy = by_hand(features, taps, heads, *shown)
    assert lpips(*pair, network, legacy=True) == pytest.approx([legacy], rel=1e-4)
    assert legacy != pytest.approx(expected, rel=1e-2)


def test_frames_are_measured_one_by_one(frames):
    torch.manual_seed(0)
    network = network_of("alex", torchvision_alexnet())
    values = lpips(*frames, network)
    assert values.dtype == np.float64 and values.shape == (3,)
    assert lpips(frames[0, 1:2], frames[1, 1:2], network) == pytest.approx(values[1:2], rel=1e-5)
    assert (lpips(frames[0], frames[0], network) == 0).all()  # truth against itself
    assert lpips(frames[0, :0], frames[0, :0], network).shape == (0,)
    with pytest.raises(UserError, match="frames of 31x40 are too small for LPIPS, which takes 32 pixels"):
        lpips(frames[0, :, :31, :40], frames[1, :, :31, :40], network)
    many = np.concatenate([frames[0]] * 4), np.concatenate([frames[1]] * 4)  # more than go at once
    assert lpips(*many, network) == pytest.approx(np.tile(values, 4), rel=1e-5)


def test_more_noise_is_farther(frames):
    torch.manual_seed(0)
    network = network_of("alex", torchvision_alexnet())
    noise = np.random.default_rng(1).normal(size=frames[0, :1].shape)
    flat = np.full_like(frames[0, :1], 128)
    noisy = [(flat + level * noise).clip(0, 255).astype(np.uint8) for level in (0, 5, 20, 60)]
    values = [float(lpips(one, flat, network)[0]) for one in noisy]
    assert values == sorted(values) and values[0] == 0 < values[1]
