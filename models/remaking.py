"""Tensors that a graph does not keep: it keeps how they are made, and the backward pass makes them again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@contextmanager
def made_again(*makers: Callable[[], Tensor]) -> Iterator[list[Tensor]]:
    """What each maker returns, for operations inside of the block, which keep the maker instead.

    A maker that holds tensors holds them for as long as the graph: they should be ones that it keeps anyway.
    It runs without a graph the second time, and under the autocast of the first.
    """
    made = [maker() for maker in makers]
    device_type = made[0].device.type
    has_autocast, precision = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    maker_of = {tensor.untyped_storage()._cdata: maker for tensor, maker in zip(made, makers, strict=True)}

    def pack(saved: Tensor):
        maker = maker_of.get(saved.untyped_storage()._cdata)
        if maker is None:
            return saved
        return maker, saved.size(), saved.stride(), saved.storage_offset()

    def unpack(packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        maker, *layout = packed
        with torch.no_grad(), torch.autocast(device_type, precision, enabled=has_autocast):
            return maker().as_strided(*layout)

    with saved_tensors_hooks(pack, unpack):
        yield made
