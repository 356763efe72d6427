"""Stand-ins, while a step is simulated, for what is not there: weights, kernels of others, a GPU."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


class EightBitStates:
    """The states of bitsandbytes' AdamW8bit, whose kernels know no tensors without storage.

    Two bytes and a little per weight: one number per block of 256 for each of the two moments; small tensors
    and embeddings have float32 moments.
    """

    BLOCK, SMALLEST = 256, 4096

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters, self.state = parameters, {}

    def step(self) -> None:
        for parameter in self.parameters:
            if parameter not in self.state:
                self.state[parameter] = [moment for _ in range(2) for moment in self._moment(parameter)]

    def zero_grad(self, set_to_none: bool) -> None:
        for parameter in self.parameters:
            parameter.grad = None if set_to_none else torch.zeros_like(parameter)

    def _moment(self, parameter: nn.Parameter) -> list[Tensor]:
        if parameter.numel() < self.SMALLEST:
            return [torch.zeros_like(parameter)]
        scales = torch.zeros(math.ceil(parameter.numel() / self.BLOCK), device=parameter.device)
        return [torch.zeros_like(parameter, dtype=torch.uint8), scales]


@contextmanager
def gpu_chunks(*networks: nn.Module) -> Iterator[None]:
    """Let networks on a CPU take as many images at once as on a GPU."""
    for network in networks:
        network.cpu_pixels = 2**40
    try:
        yield
    finally:
        for network in networks:
            del network.cpu_pixels  # the class has its own


@contextmanager
def cuda_autocast_rules() -> Iterator[None]:
    """Let autocast on a CPU compute norms and softmax in float32, as it does on a GPU."""

    def in_float32(function: Callable) -> Callable:
        def call(*args, **options):
            if torch.is_autocast_enabled("cpu"):
                args, options = tree_map_only(Tensor, Tensor.float, (args, options))
            return function(*args, **options)

        return call

    # Not by a TorchFunctionMode: it is off in the backward pass, where checkpointed blocks are recomputed.
    originals = {name: getattr(F, name) for name in ("group_norm", "layer_norm", "rms_norm", "softmax")}
    try:
        vars(F).update({name: in_float32(function) for name, function in originals.items()})
        yield
    finally:
        vars(F).update(originals)


@contextmanager
def storageless(
    module: nn.Module, device: torch.device | str, dtype_of: Callable[[Tensor], torch.dtype]
) -> Iterator[None]:
    """Let tensors without storage stand in for the module's parameters and buffers inside the block.

    `dtype_of` gives the type that a floating-point one would be converted to.
    """
    memo: dict[int, Tensor] = {}

    def stand_in(tensor: Tensor | None) -> Tensor | None:
        if tensor is not None and id(tensor) not in memo:
            dtype = dtype_of(tensor) if tensor.is_floating_point() else tensor.dtype
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
        return memo.get(id(tensor))

    owned = [tensors for part in module.modules() for tensors in (part._parameters, part._buffers)]
    originals = [dict(tensors) for tensors in owned]
    try:
        for tensors in owned:
            tensors.update({name: stand_in(tensor) for name, tensor in tensors.items()})
        yield
    finally:
        for tensors, original in zip(owned, originals, strict=True):
            tensors.update(original)


@contextmanager
def sdpa_instead_of_xformers(model: nn.Module) -> Iterator[None]:
    """Let PyTorch's attention stand in for xformers': it keeps the same, and needs no storage."""
    model.set_attention_backend("sdpa")
    try:
        yield
    finally:
        model.set_attention_backend("xformers")
