"""Bytes that tensors hold at every moment, and their peak, whether they have storage or none.

Storages are counted once, however many tensors (views, what autograd saves) share them, and until they die.
"""

import math
import weakref
from collections.abc import Iterable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA_BLOCK = 512  # CUDA's caching allocator hands out multiples of it
KINDS = ("weights", "gradients", "optimizer", "activations")


class MemoryTracker(TorchDispatchMode):
    """Counts the storages on one type of device that appear while the mode is on, and those given to `count`.

    `peak` is {kind: bytes} at the moment when most bytes were held, `peak_phase` what `phase` was then.
    """

    def __init__(self, device_type: str):
        super().__init__()
        self.device_type = device_type
        self.phase = ""
        self.held = dict.fromkeys(KINDS, 0)
        self.restart()
        self._storages: dict[int, tuple[weakref.ref, str, int]] = {}  # {address of the storage: ...}

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self.peak_phase = dict(self.held), self.phase

    def count(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count what these tensors hold as of a kind, whatever it counted as before."""
        for tensor in tensors:
            self._note(tensor, kind)
        self._note_peak()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = (result,) if isinstance(result, Tensor) else tree_leaves(result)
        if [leaf for leaf in leaves if isinstance(leaf, Tensor) and self._note(leaf)]:
            self._note_peak()
        return result

    def _note(self, tensor: Tensor, kind: str | None = None) -> bool:
        """Return whether the storage is new; one that is known only changes its kind, if asked to."""
        if tensor.device.type != self.device_type:
            return False
        storage = tensor.untyped_storage()
        key = storage._cdata
        is_new = key not in self._storages
        if is_new:
            block = CUDA_BLOCK if self.device_type == "cuda" else 1
            size = math.ceil(storage.nbytes() / block) * block
            reference, before = weakref.ref(storage, lambda _: self._forget(key)), "activations"
        else:
            reference, before, size = self._storages[key]
            self.held[before] -= size
        self._storages[key] = (reference, kind or before, size)
        self.held[kind or before] += size
        return is_new

    def _forget(self, key: int) -> None:
        _, kind, size = self._storages.pop(key)
        self.held[kind] -= size

    def _note_peak(self) -> None:
        if sum(self.held.values()) > sum(self.peak.values()):
            self.peak, self.peak_phase = dict(self.held), self.phase
