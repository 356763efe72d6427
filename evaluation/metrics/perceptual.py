"""LPIPS as published, and as the tables of the field have it: how unlike two images look to a network."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from system.errors import UserError

SMALLEST_SIDE = 32  # pixels
_AT_ONCE = 8  # frames through the network, each twice

# LPIPS's own, for images in [-1, 1]: torchvision's mean and deviation, carried over.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class Backbone(NamedTuple):
    """The convolutions of a torchvision classifier, as `features.N` of its state dict."""

    layers: tuple[tuple[str, int], ...]  # ("conv", N), ("pool", N) or ("tap", width), in order
    kernels: dict[int, tuple[int, int, int]]  # {N: (kernel, stride, padding)} where not (3, 1, 1)
    pool: tuple[int, int]  # kernel, stride

    @property
    def widths(self) -> list[int]:
        """Return the channels of the five layers."""
        return [number for kind, number in self.layers if kind == "tap"]

    @property
    def shapes(self) -> dict[int, tuple[int, int, int, int]]:
        """Return {N: shape of the convolution's weight}."""
        shapes, channels = {}, 3
        widths = iter(self.widths)
        width = next(widths)
        for kind, place in self.layers:
            if kind == "conv":
                kernel = self.kernels.get(place, (3, 1, 1))[0]
                shapes[place] = (width, channels, kernel, kernel)
                channels = width
            elif kind == "tap":
                width = next(widths, width)
        return shapes


def _vgg16() -> Backbone:
    layers, place = [], 0
    for block, (count, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        if block:
            layers.append(("pool", place))
            place += 1
        for _ in range(count):  # a convolution and its ReLU each
            layers.append(("conv", place))
            place += 2
        layers.append(("tap", width))
    return Backbone(tuple(layers), {}, (2, 2))


_ALEXNET = Backbone(
    layers=(
        ("conv", 0), ("tap", 64), ("pool", 2), ("conv", 3), ("tap", 192), ("pool", 5), ("conv", 6),
        ("tap", 384), ("conv", 8), ("tap", 256), ("conv", 10), ("tap", 256),
    ),
    kernels={0: (11, 4, 2), 3: (5, 1, 2)},
    pool=(3, 2),
)  # fmt: skip
BACKBONES = {"vgg": _vgg16(), "alex": _ALEXNET}


class PerceptualNetwork(nn.Module):
    """VGG-16 or AlexNet without its classifier, and a weight per channel of five of its layers.

    `convolutions`: {N: (weight, bias)} of torchvision's `features.N`; `heads`: five weights [C]. Made by
    `evaluation.networks.load_perceptual_network`.
    """

    def __init__(self, name: str, convolutions: dict[int, tuple[Tensor, Tensor]], heads: list[Tensor]):
        super().__init__()
        self.name = name
        self.backbone = BACKBONES[name]
        for place, (weight, bias) in convolutions.items():
            self.register_buffer(f"weight_{place}", weight.float())
            self.register_buffer(f"bias_{place}", bias.float())
        for place, head in enumerate(heads):
            self.register_buffer(f"head_{place}", head.float().reshape(-1))
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the five layers' activations [N, C, h, w] of images [N, 3, H, W], of length 1 over C."""
        tapped = []
        current = (images - self.shift) / self.scale
        for kind, place in self.backbone.layers:
            if kind == "tap":
                tapped.append(current / (current.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
            elif kind == "pool":
                current = functional.max_pool2d(current, *self.backbone.pool)
            else:
                _, stride, padding = self.backbone.kernels.get(place, (3, 1, 1))
                weight, bias = getattr(self, f"weight_{place}"), getattr(self, f"bias_{place}")
                current = functional.conv2d(current, weight, bias, stride, padding).relu()
        return tapped

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distance [N] of images [N, 3, H, W]."""
        features = self.features(torch.cat([first, second]))
        total = torch.zeros(len(first), device=first.device)
        for place, activations in enumerate(features):
            one, other = activations.chunk(2)
            weighted = (one - other).square() * getattr(self, f"head_{place}")[:, None, None]
            total += weighted.sum(dim=1).mean(dim=(1, 2))
        return total


@torch.no_grad()
def lpips(
    prediction: np.ndarray, truth: np.ndarray, network: PerceptualNetwork, *, legacy: bool = False
) -> np.ndarray:
    """Return float64 [F], LPIPS of uint8 frames [F, H, W, 3] against their truth; 0 is best, no unit.

    arXiv:1801.03924, version 0.1: squared differences of five layers' activations, each pixel's brought to
    length 1 over the channels, weighted per channel, averaged over the image, summed over the layers.
    With `legacy` the network is given [0, 1] where it expects [-1, 1], as in DisCo's code (with VGG), whose
    tables most papers of the field repeat: another number, not comparable with this one. VGG and AlexNet
    differ as well. Blind to motion; a shift of a few pixels costs little.
    Raises UserError for frames of less than 32 pixels along a side, which have no last layer.
    """
    if min(prediction.shape[1:3]) < SMALLEST_SIDE:
        size = "x".join(map(str, prediction.shape[1:3]))
        raise UserError(
            f"frames of {size} are too small for LPIPS, which takes {SMALLEST_SIDE} pixels or more"
        )
    device = network.shift.device
    values = []
    for start in range(0, len(prediction), _AT_ONCE):
        pair = [
            torch.from_numpy(np.ascontiguousarray(frames[start : start + _AT_ONCE]))
            .to(device)
            .permute(0, 3, 1, 2)
            .float()
            / 255
            for frames in (prediction, truth)
        ]
        if not legacy:
            pair = [images * 2 - 1 for images in pair]
        values.append(network(*pair).double().cpu())
    return torch.cat(values).numpy() if values else np.zeros(0)
