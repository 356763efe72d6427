"""Frozen weights on the CPU while training reads their features from a cache."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import nn


class OffloadedWeights(AbstractContextManager):
    """Frozen weights that are on the CPU, so that a GPU has room; inside the block they are on the device.

    Buffers stay: they are small, and DistributedDataParallel sends them around.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device):
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.device = device
        self._move("cpu")

    def __enter__(self) -> None:
        self._move(self.device)

    def __exit__(self, *_) -> None:
        self._move("cpu")

    def _move(self, device: torch.device | str) -> None:
        for parameter in self.parameters:
            parameter.data = parameter.data.to(device)


def unused_modules(model: nn.Module, guidance_types: Iterable[str]) -> list[nn.Module]:
    """Return what a training that has these types' features and the bank from the cache never runs."""
    group = model.guidance_encoders
    parts = [part[name] for part in (group.encoders, group.projections) for name in guidance_types
             if name in part]  # fmt: skip
    return [model.reference_unet, *parts]
