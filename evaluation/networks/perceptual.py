"""LPIPS's two files: torchvision's VGG-16 or AlexNet, and the published linear heads."""

import re
from pathlib import Path

import torch
from torch import Tensor

from evaluation.metrics.perceptual import BACKBONES, PerceptualNetwork
from models.weight_files import read_weights
from system.errors import ModelError


def load_perceptual_network(
    path: str | Path, heads_path: str | Path, device: str | torch.device = "cpu"
) -> PerceptualNetwork:
    """Return LPIPS's network of torchvision's `vgg16-*.pth` or `alexnet-*.pth` and its linear heads.

    The heads are `weights/v0.1/vgg.pth` or `alex.pth` of the package lpips. Shapes tell which network it is.
    Raises ModelError when a file is neither, or the two do not belong together.
    """
    weights = read_weights(path)
    found = {
        int(match[1]): (weights[key], weights[key.replace("weight", "bias")])
        for key in weights
        if (match := re.fullmatch(r"features\.(\d+)\.weight", key))
        and key.replace("weight", "bias") in weights
    }
    name = _name_of(found)
    if name is None:
        expected = "torchvision's vgg16 or alexnet (a .pth with features.N.weight)"
        raise ModelError(f"{path} is not one of LPIPS's networks: expected {expected}")
    return PerceptualNetwork(name, found, _read_heads(heads_path, name)).to(device)


def _name_of(found: dict[int, tuple[Tensor, Tensor]]) -> str | None:
    """Return which backbone has these convolutions, by their places and shapes."""
    for name, backbone in BACKBONES.items():
        shapes = {place: tuple(weight.shape) for place, (weight, _) in found.items()}
        if shapes == backbone.shapes:
            return name
    return None


def _read_heads(path: str | Path, name: str) -> list[Tensor]:
    keys = {
        int(match[1]): value for key, value in read_weights(path).items() if (match := _HEAD.fullmatch(key))
    }
    heads = [keys[place] for place in sorted(keys)]
    widths = [head.numel() for head in heads]
    for other, backbone in BACKBONES.items():
        if widths == backbone.widths and other == name:
            return heads
        if widths == backbone.widths:
            raise ModelError(
                f"{path} has the linear heads of {other}, and the network is {name}: give {name}.pth"
            )
    expected = (
        f"LPIPS's linear heads for {name} (lin0.model.1.weight to lin4: weights/v0.1/{name}.pth of lpips)"
    )
    raise ModelError(f"{path} holds no heads of these widths {widths}: expected {expected}")


_HEAD = re.compile(r"lin(\d)\.model\.\d\.weight")
