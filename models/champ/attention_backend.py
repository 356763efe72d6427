"""Softmax attention by PyTorch or xformers: how each takes the heads, and batches too large for a kernel."""

import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.recomputation import recomputed
from system.errors import ModelError

ATTENTION_BACKENDS = ("sdpa", "xformers")

# CUDA grids end at 65,535 in the batch dimension: fused attention kernels fail above it, and the temporal
# attention of the motion modules has one batch entry per latent pixel.
MAX_ATTENTION_BATCH = 65_535

# In short sequences, products of narrow heads take little of the time.
NARROW_HEAD, LONG_SEQUENCE = 16, 64


def _fills_narrow_heads() -> bool:
    """Return whether a CPU attends faster with narrow heads filled up with zeros: not Intel's, with MKL."""
    facts = Path("/proc/cpuinfo")
    vendor = facts.read_text() if facts.is_file() else platform.processor()
    return "GenuineIntel" not in vendor


FILLS_NARROW_HEADS = _fills_narrow_heads()


def check_attention_backend(backend: str) -> None:
    """Raise ModelError when `backend` is unknown or cannot run here."""
    if backend not in ATTENTION_BACKENDS:
        raise ModelError(
            f"attention backend {backend!r} is unknown: choose one of {', '.join(ATTENTION_BACKENDS)}"
        )
    if backend == "xformers" and importlib.util.find_spec("xformers") is None:
        raise ModelError(
            "xformers is not installed: run `pip install xformers` (also in requirements-gpu.txt), "
            "or leave out --enable_xformers_memory_efficient_attention (PyTorch's attention is the default)"
        )
    if backend == "xformers" and not torch.cuda.is_available():
        raise ModelError(
            "xformers needs a CUDA GPU: leave out --enable_xformers_memory_efficient_attention here"
        )


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, backend: str) -> Tensor:
    """Return attention [N, L, C] of query [N, L, C] to keys and values [N, M, C], split into heads."""
    layout = _HeadLayout(query, num_heads, backend)
    return layout.attend(*(layout.split(tokens) for tokens in (query, key, value)))


def attend_recomputed(
    query: Tensor, key: Callable[[], Tensor], value: Callable[[], Tensor], num_heads: int, backend: str
) -> Tensor:
    """Return `attend` to the keys and values that two functions make; the backward pass calls them again."""
    layout = _HeadLayout(query, num_heads, backend)
    makers = (lambda: layout.split(query)), (lambda: layout.split(key())), (lambda: layout.split(value()))
    with recomputed(query) as recompute_with:
        return layout.attend(*(recompute_with(maker(), maker) for maker in makers))


class _HeadLayout:
    """How a backend takes tokens [N, L, C] in heads of C / num_heads channels."""

    def __init__(self, query: Tensor, num_heads: int, backend: str):
        self.num_heads, self.backend = num_heads, backend
        self.width = query.shape[-1] // num_heads
        is_slow = self.width < NARROW_HEAD and query.shape[1] >= LONG_SEQUENCE and query.device.type == "cpu"
        # Zeros change no number, but the time (32 images, 8 heads of 8, 256 tokens): 94 ms for 150 on one
        # processor, 65 for 55 on an Intel one.
        self.filling = NARROW_HEAD - self.width if is_slow and FILLS_NARROW_HEADS else 0

    def split(self, tokens: Tensor) -> Tensor:
        """Return [N, L, heads, d] for xformers, else [N, heads, L, d], of tokens [N, L, C]."""
        tokens = tokens.unflatten(-1, (self.num_heads, -1))
        if self.backend == "xformers":
            return tokens
        tokens = tokens.transpose(1, 2)
        return F.pad(tokens, (0, self.filling)) if self.filling else tokens

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return [N, L, C] of what `split` returned."""
        attention = self._xformers_attention if self.backend == "xformers" else self._sdpa_attention
        if len(query) <= MAX_ATTENTION_BATCH:
            return attention(query, key, value).flatten(2)
        chunks = zip(*(tokens.split(MAX_ATTENTION_BATCH) for tokens in (query, key, value)), strict=True)
        return torch.cat([attention(*chunk) for chunk in chunks]).flatten(2)

    def _sdpa_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return [N, L, heads, d] of [N, heads, L, d]."""
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.width**-0.5)
        return attended[..., : self.width].transpose(1, 2)

    @staticmethod
    def _xformers_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return [N, L, heads, d] of the same."""
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(query, key, value)
