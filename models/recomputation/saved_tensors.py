"""Tensors that the graph does not keep: it keeps a function, and the backward pass recomputes them by it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@contextmanager
def recomputed(like: Tensor) -> Iterator[Callable[[Tensor, Callable[[], Tensor]], Tensor]]:
    """Yield recompute_with(tensor, function), which returns the tensor.

    Operations inside the block that would keep it keep the function instead. A function that holds tensors
    holds them for as long as the graph: they should be ones that it keeps anyway. It runs without a graph,
    under the autocast of the block. `like` is on the tensors' device.
    """
    device_type, precision, is_mixed = autocast_of(like)
    function_of: dict[int, Callable[[], Tensor]] = {}
    held: list[Tensor] = []  # inside the block: a freed one's place could be taken by another

    def recompute_with(tensor: Tensor, function: Callable[[], Tensor]) -> Tensor:
        function_of[_storage_of(tensor)] = function
        held.append(tensor)
        return tensor

    def pack(saved: Tensor):
        function = function_of.get(_storage_of(saved))
        if function is None:
            return saved.detach()  # an operation's own output would hold the graph, and the graph it
        return function, saved.size(), saved.stride(), saved.storage_offset()

    def unpack(packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        function, *layout = packed
        with torch.no_grad(), torch.autocast(device_type, precision, enabled=is_mixed):
            return function().as_strided(*layout)

    try:
        with saved_tensors_hooks(pack, unpack):
            yield recompute_with
    finally:
        held.clear()


def autocast_of(tokens: Tensor) -> tuple[str, torch.dtype, bool]:
    """Return autocast's device type, the precision of products of the tokens, and whether autocast is on."""
    device_type = tokens.device.type
    if not torch.amp.is_autocast_available(device_type):
        return "cpu", tokens.dtype, False  # meta tensors
    is_mixed = torch.is_autocast_enabled(device_type)
    return device_type, torch.get_autocast_dtype(device_type) if is_mixed else tokens.dtype, is_mixed


def _storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
