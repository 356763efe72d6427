"""Networks of the published video distances: I3D for FVD, a 3D ResNet-50 for FID-VID."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.model_files import load_strictly
from models.weight_files import read_weights

from .frames import fitted, rows_of
from .torch_script import ScriptFile

I3D_SIZE, RESNET_SIZE = (224, 224), (112, 112)
_KINETICS_MEAN = (114.7748, 107.7354, 99.4750)  # of 0..255, R G B

FeatureNetwork = Callable[[np.ndarray], np.ndarray]


def load_i3d(path: str | Path, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Return uint8 clips [N, F, H, W, 3] to I3D's features [N, 400], of a TorchScript file.

    Made for `i3d_torchscript.pt` of StyleGAN-V, which gives the features of FVD's first code. Clips are
    squeezed to 224 x 224, bilinearly as there but smoothed, and scaled to [-1, 1]; at least 10 frames.
    """
    script = ScriptFile(path, "I3D as TorchScript (i3d_torchscript.pt)", device)
    options = {"rescale": False, "resize": False, "return_features": True}

    def embed(clips: np.ndarray) -> np.ndarray:
        inputs = torch.stack([fitted(clip, I3D_SIZE, "bilinear") for clip in clips]) / 127.5 - 1
        return rows_of(script, inputs.transpose(1, 2), script.path, "clips", **options)

    return embed


def load_resnet3d(path: str | Path, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Return uint8 clips [N, F, H, W, 3] to a 3D ResNet-50's pooled features [N, 2048].

    Of DisCo's weights `resnet-50-kinetics.pth`, or of a TorchScript file that takes [N, 3, F, 112, 112].
    Clips are squeezed to 112 x 112 bicubically, in 0..255 less the mean of Kinetics.
    """
    path = Path(path).expanduser()
    if _is_script(path):
        network = ScriptFile(path, "a 3D ResNet-50 as TorchScript", device)
    else:
        network = ResNet3d()
        weights = read_weights(path)
        load_strictly(
            network, {key: value for key, value in weights.items() if not key.startswith("fc.")}, path
        )
        network = network.eval().to(device)
    mean = torch.tensor(_KINETICS_MEAN)[:, None, None]

    def embed(clips: np.ndarray) -> np.ndarray:
        inputs = torch.stack([fitted(clip, RESNET_SIZE) for clip in clips]) - mean
        return rows_of(network, inputs.transpose(1, 2).to(device), path, "clips")

    return embed


def _is_script(path: Path) -> bool:
    """Return whether a file is TorchScript, an archive that holds constants beside the weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class ResNet3d(nn.Module):
    """3D ResNet-50 of Hara et al. (arXiv:1711.09577), shortcuts by convolution, without its last layer."""

    def __init__(self, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64):
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, 7, (1, 2, 2), 3, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        num_channels = width
        for place, count in enumerate(blocks):
            inner = width * 2**place
            layer = []
            for block in range(count):
                layer.append(_Bottleneck(num_channels, inner, 2 if place and block == 0 else 1))
                num_channels = 4 * inner
            setattr(self, f"layer{place + 1}", nn.Sequential(*layer))
        self.num_layers = len(blocks)

    def forward(self, clips: Tensor) -> Tensor:
        """Return features [N, D] of clips [N, 3, F, H, W]."""
        current = nn.functional.max_pool3d(self.bn1(self.conv1(clips)).relu(), 3, 2, 1)
        for place in range(self.num_layers):
            current = getattr(self, f"layer{place + 1}")(current)
        return current.mean(dim=(2, 3, 4))


class _Bottleneck(nn.Module):
    def __init__(self, num_channels: int, inner: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(num_channels, inner, 1, bias=False), nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(inner)
        self.conv3, self.bn3 = nn.Conv3d(inner, 4 * inner, 1, bias=False), nn.BatchNorm3d(4 * inner)
        self.downsample = None
        if stride != 1 or num_channels != 4 * inner:
            shortcut = nn.Conv3d(num_channels, 4 * inner, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(4 * inner))

    def forward(self, clips: Tensor) -> Tensor:
        current = self.bn1(self.conv1(clips)).relu()
        current = self.bn2(self.conv2(current)).relu()
        shortcut = clips if self.downsample is None else self.downsample(clips)
        return (self.bn3(self.conv3(current)) + shortcut).relu()
