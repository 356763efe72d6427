"""Softmax attention by PyTorch or xformers: how each takes the heads, and batches too large for a kernel."""

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.recomputation import recomputed
from system.errors import ModelError

ATTENTION_BACKENDS = ("sdpa", "xformers")

# CUDA grids end at 65,535 in the batch dimension: fused attention kernels fail above it, and the temporal
# attention of the motion modules has one batch entry per latent pixel.
MAX_ATTENTION_BATCH = 65_535


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
    query, key, value = (_split(tokens, num_heads, backend) for tokens in (query, key, value))
    return _attend_in_chunks(query, key, value, backend)


def attend_recomputed(
    query: Tensor, key: Callable[[], Tensor], value: Callable[[], Tensor], num_heads: int, backend: str
) -> Tensor:
    """Return `attend` to the keys and values that two functions make; the backward pass calls them again."""
    makers = (lambda: _split(key(), num_heads, backend)), (lambda: _split(value(), num_heads, backend))
    with recomputed(query) as recompute_with:
        joined = [recompute_with(maker(), maker) for maker in makers]
        return _attend_in_chunks(_split(query, num_heads, backend), *joined, backend)


def _split(tokens: Tensor, num_heads: int, backend: str) -> Tensor:
    """Return [N, L, heads, d] for xformers, else [N, heads, L, d], of tokens [N, L, C]."""
    tokens = tokens.unflatten(-1, (num_heads, -1))
    return tokens if backend == "xformers" else tokens.transpose(1, 2)


def _attend_in_chunks(query: Tensor, key: Tensor, value: Tensor, backend: str) -> Tensor:
    """Return attention [N, L, C] of what `_split` returned."""
    attention = _xformers_attention if backend == "xformers" else _sdpa_attention
    if len(query) <= MAX_ATTENTION_BATCH:
        return attention(query, key, value).flatten(2)
    chunks = zip(*(tokens.split(MAX_ATTENTION_BATCH) for tokens in (query, key, value)), strict=True)
    return torch.cat([attention(*chunk) for chunk in chunks]).flatten(2)


def _sdpa_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return [N, L, heads, d] of [N, heads, L, d]."""
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _xformers_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return [N, L, heads, d] of the same."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(query, key, value)
