"""Frozen weights in the precision that autocast computes in; their originals stay on the CPU, to be saved.

Autocast would cast them in every step, to the same bits: it remembers the casts of trained weights only.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .sharding import is_sharded

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # of --mixed_precision
# Autocast runs these in half precision, weight and bias. Norms, for one, it does not.
AUTOCAST_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class HalfWeights:
    """Parameters that are in half precision for as long as they are not read to be saved."""

    def __init__(self, parameters: list[nn.Parameter], dtype: torch.dtype, *, is_main: bool):
        # (parameter, float32 on the CPU): of the process that saves
        self.originals = [(parameter, parameter.data.cpu()) for parameter in parameters if is_main]
        for parameter in parameters:
            parameter.data = parameter.data.to(dtype)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Let the main process's model have its originals inside the block, on the CPU. Also a decorator."""
        halves = [(parameter, parameter.data) for parameter, _ in self.originals]
        for parameter, original in self.originals:
            parameter.data = original
        try:
            yield
        finally:
            for parameter, half in halves:
                parameter.data = half


def halve_frozen(model: nn.Module, dtype: torch.dtype, device: torch.device, *, is_main: bool) -> HalfWeights:
    """Bring the frozen weights of a ChampModel's layers to `dtype`, autocast's; return what undoes it.

    A sharded model stays as it is: each process has but its share.
    """
    is_worth_it = dtype != torch.float32 and saves_memory(device) and not is_sharded(model)
    return HalfWeights(frozen_layer_weights(model) if is_worth_it else [], dtype, is_main=is_main)


def frozen_layer_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the frozen parameters, in the UNets, of what autocast runs in half precision.

    Guidance encoders are left out: they are small, and may be the user's own, who may do more with a layer's
    weight than call the layer.
    """
    return [
        parameter
        for unet in (model.unet, model.reference_unet)
        for module in unet.modules()
        if type(module) in AUTOCAST_LAYERS
        for parameter in module.parameters(recurse=False)
        if not parameter.requires_grad
    ]


def saves_memory(device: torch.device) -> bool:
    return device.type != "cpu"  # where the originals would lie beside them
