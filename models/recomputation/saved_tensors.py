"""Tensors that a graph does not keep: it keeps how they are made, and the backward pass makes them again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@contextmanager
def made_again(like: Tensor) -> Iterator[Callable[[Tensor, Callable[[], Tensor]], Tensor]]:
    """A function keep_maker(tensor, maker), which returns the tensor.

    Operations inside of the block that would keep it keep the maker instead. A maker that holds tensors holds
    them for as long as the graph: they should be ones that it keeps anyway. It runs without a graph, under
    the autocast of the block. `like` is on the tensors' device.
    """
    device_type = like.device.type
    has_autocast, precision = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    maker_of: dict[int, Callable[[], Tensor]] = {}
    held: list[Tensor] = []  # inside of the block: a freed one's place could be taken by another

    def keep_maker(tensor: Tensor, maker: Callable[[], Tensor]) -> Tensor:
        maker_of[_storage_of(tensor)] = maker
        held.append(tensor)
        return tensor

    def pack(saved: Tensor):
        maker = maker_of.get(_storage_of(saved))
        if maker is None:
            return saved.detach()  # an operation's own output would hold the graph, and the graph it
        return maker, saved.size(), saved.stride(), saved.storage_offset()

    def unpack(packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        maker, *layout = packed
        with torch.no_grad(), torch.autocast(device_type, precision, enabled=has_autocast):
            return maker().as_strided(*layout)

    try:
        with saved_tensors_hooks(pack, unpack):
            yield keep_maker
    finally:
        held.clear()


def _storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
