"""Frames as a network expects them, and what it gives as rows of numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.weight_files import reason_of
from system.errors import ModelError


def fitted(frames: np.ndarray, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Return float [F, 3, h, w] in 0..255 of uint8 frames [F, H, W, 3], squeezed to (h, w).

    Not cropped: a centre crop would cut off a standing dancer's head and feet. Both modes smooth what is made
    smaller, and round to whole numbers, as Pillow's do.
    """
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    if images.shape[-2:] != size:
        images = functional.interpolate(images, size, mode=mode, align_corners=False, antialias=True)
    return images.float()


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images [..., 3, h, w] in 0..255 as (images / 255 - mean) / std."""
    mean, std = (torch.tensor(one, dtype=torch.float32)[:, None, None] for one in (mean, std))
    return (images / 255 - mean) / std


@torch.no_grad()
def rows_of(network: Callable[..., Tensor], inputs: Tensor, source: str | Path, what: str, **options):
    """Return a network's features as float32 [N, D] for inputs [N, ...].

    Raises ModelError when they do not fit it, or are not one row each.
    """
    try:
        features = network(inputs, **options)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if "out of memory" in str(error):
            raise
        raise ModelError(f"{source}: cannot take {what} {list(inputs.shape)}: {_reason(error)}") from error
    found = list(features.shape) if torch.is_tensor(features) else type(features).__name__
    if not torch.is_tensor(features) or features.dim() < 2 or len(features) != len(inputs):
        raise ModelError(f"{source}: gives {found} for {what}, expected one row of features for each")
    return features.flatten(1).float().cpu().numpy()


def _reason(error: Exception) -> str:
    """Return the last line of an error out of TorchScript, whose first ones are a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else reason_of(error)
