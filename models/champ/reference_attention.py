"""Reference attention (CHAMP, arXiv:2403.14781) as attention processors over stock diffusers blocks.

The reference UNet writes the input of every spatial self-attention into a bank; the denoising UNet reads it:
each frame attends to its own tokens and to the reference's. The bank is an argument of the forward pass
(`cross_attention_kwargs`), keyed by processor name, which is the same in both UNets. Nothing is kept on
modules, so gradient accumulation, checkpointing and several calls in flight cannot mix banks up.
"""

import importlib.util
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recomputation.saved_tensors import made_again
from system.errors import ModelError

ATTENTION_BACKENDS = ("sdpa", "xformers")

# CUDA grids end at 65,535 in the batch dimension: fused attention kernels fail above it, and the temporal
# attention of the motion modules has one batch entry per latent pixel.
MAX_ATTENTION_BATCH = 65_535

# In short sequences, products of narrow heads take little of the time.
NARROW_HEAD, LONG_SEQUENCE = 16, 64


def _fills_narrow_heads() -> bool:
    """Whether a CPU attends faster with narrow heads filled up with zeros: not where MKL is at home."""
    facts = Path("/proc/cpuinfo")
    vendor = facts.read_text() if facts.is_file() else platform.processor()
    return "GenuineIntel" not in vendor


FILLS_NARROW_HEADS = _fills_narrow_heads()


def check_attention_backend(backend: str) -> None:
    """Raises ModelError when `backend` is unknown or cannot run here."""
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
    """Softmax attention [N, L, C] of query [N, L, C] over key and value [N, M, C], split into heads."""
    layout = _HeadLayout(query, num_heads, backend)
    return layout.attend(*(layout.split(tokens) for tokens in (query, key, value)))


def attend_with_reference(
    query: Tensor, own: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor],
    reference_mask: Tensor | None, num_heads: int, backend: str,
) -> Tensor:  # fmt: skip
    """`attend` over own keys and values [B*F, L, C] joined with the reference's [B, L, C].

    The graph keeps them apart, and joins them again in the backward pass: joined they are four times as large
    as the query.
    """
    layout = _HeadLayout(query, num_heads, backend)

    def join(index: int) -> Tensor:
        return layout.split(join_reference(own[index], reference[index], reference_mask))

    makers = (lambda: layout.split(query)), (lambda: join(0)), (lambda: join(1))
    with made_again(query) as keep_maker:
        return layout.attend(*(keep_maker(maker(), maker) for maker in makers))


class _HeadLayout:
    """How a backend takes tokens [N, L, C] in heads of C / num_heads channels."""

    def __init__(self, query: Tensor, num_heads: int, backend: str):
        self.num_heads, self.backend = num_heads, backend
        self.width = query.shape[-1] // num_heads
        is_slow = self.width < NARROW_HEAD and query.shape[1] >= LONG_SEQUENCE and query.device.type == "cpu"
        # Zeros change no number, but the time (32 pictures, 8 heads of 8, 256 tokens): 94 ms for 150 on one
        # processor, 65 for 55 on an Intel one.
        self.filling = NARROW_HEAD - self.width if is_slow and FILLS_NARROW_HEADS else 0

    def split(self, tokens: Tensor) -> Tensor:
        """[N, L, C] -> xformers [N, L, heads, d], else [N, heads, L, d]"""
        tokens = tokens.unflatten(-1, (self.num_heads, -1))
        if self.backend == "xformers":
            return tokens
        tokens = tokens.transpose(1, 2)
        return F.pad(tokens, (0, self.filling)) if self.filling else tokens

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, L, C] of what `split` returned."""
        attention = self._xformers_attention if self.backend == "xformers" else self._sdpa_attention
        if len(query) <= MAX_ATTENTION_BATCH:
            return attention(query, key, value).flatten(2)
        chunks = zip(*(tokens.split(MAX_ATTENTION_BATCH) for tokens in (query, key, value)), strict=True)
        return torch.cat([attention(*chunk) for chunk in chunks]).flatten(2)

    def _sdpa_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, heads, L, d] -> [N, L, heads, d]"""
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.width**-0.5)
        return attended[..., : self.width].transpose(1, 2)

    @staticmethod
    def _xformers_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, L, heads, d] -> [N, L, heads, d]"""
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(query, key, value)


class SelfAttention:
    """Plain self-attention: the temporal attention of the motion modules."""

    def __init__(self, backend: str = "sdpa"):
        self.backend = backend

    def __call__(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None
    ) -> Tensor:
        return self.project_out(attn, hidden_states, attn.to_k(hidden_states), attn.to_v(hidden_states))

    def project_out(self, attn: nn.Module, hidden_states: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Output [N, L, C] of the attention layer for the given keys and values [N, M, C]."""
        return _leave(attn, attend(attn.to_q(hidden_states), key, value, attn.heads, self.backend))


def _leave(attn: nn.Module, attended: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](attended))  # linear, dropout


class ImageTokenAttention(SelfAttention):
    """Cross-attention to the CLIP image tokens [N, L, D].

    A softmax over one token is 1, so with CHAMP's single token the output is `to_out(to_v(token))` for every
    position, exactly; it is returned as [N, 1, C] and broadcasts when the block adds it.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask=None,
        reference_bank=None,
        reference_mask=None,
        bank_to_write=None,
    ) -> Tensor:
        value = attn.to_v(encoder_hidden_states)
        if encoder_hidden_states.shape[1] == 1:
            return _leave(attn, value)
        return self.project_out(attn, hidden_states, attn.to_k(encoder_hidden_states), value)


class ReferenceWriteAttention(SelfAttention):
    """Self-attention of the reference UNet that records its input in `bank_to_write[name]` ([B, L, C])."""

    def __init__(self, name: str, backend: str = "sdpa", is_last: bool = False):
        super().__init__(backend)
        self.name = name
        self.is_last = is_last

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states=None,
        attention_mask=None,
        bank_to_write: dict[str, Tensor] | None = None,
    ) -> Tensor:
        if bank_to_write is not None:
            bank_to_write[self.name] = hidden_states
            if self.is_last:
                return hidden_states  # nothing reads what follows the last write: the attention is left out
        return super().__call__(attn, hidden_states)


class ReferenceReadAttention(SelfAttention):
    """Self-attention of the denoising UNet over [own; reference] tokens."""

    def __init__(self, name: str, backend: str = "sdpa"):
        super().__init__(backend)
        self.name = name

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states=None,
        attention_mask=None,
        reference_bank: dict[str, Tensor] | Tensor | None = None,
        reference_mask: Tensor | None = None,
        keeps_joined: bool = True,
    ) -> Tensor:
        """hidden_states [B*F, L, C]; reference_bank[name] [B, L, C], or that tensor itself; reference_mask
        bool [B], False = own tokens; keeps_joined False: see `attend_with_reference`."""
        key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        if reference_bank is None:
            return self.project_out(attn, hidden_states, key, value)
        # The projections run once per clip and are expanded over its frames, not once per frame.
        is_looked_up = isinstance(reference_bank, Tensor)
        reference = reference_bank if is_looked_up else reference_bank[self.name]
        reference_key, reference_value = attn.to_k(reference), attn.to_v(reference)
        if keeps_joined:
            key = join_reference(key, reference_key, reference_mask)
            value = join_reference(value, reference_value, reference_mask)
            return self.project_out(attn, hidden_states, key, value)
        attended = attend_with_reference(
            attn.to_q(hidden_states), (key, value), (reference_key, reference_value), reference_mask,
            attn.heads, self.backend,
        )  # fmt: skip
        return _leave(attn, attended)


def join_reference(own: Tensor, reference: Tensor, reference_mask: Tensor | None) -> Tensor:
    """[B*F, 2L, C]: own tokens [B*F, L, C] followed by the clip's reference tokens [B, L, C].

    Where the mask is False a second copy of the own tokens follows instead: attending twice to the same
    tokens is attending to them once, so the sample has no reference while shapes and the set of used
    parameters stay static.
    """
    own = own.unflatten(0, (reference.shape[0], -1))  # [B, F, L, C]
    reference = reference[:, None].expand(-1, own.shape[1], -1, -1)
    if reference_mask is not None:
        if reference.shape != own.shape:
            raise ModelError("reference_mask needs a reference of the size of the frames")
        reference = torch.where(reference_mask[:, None, None, None], reference, own)
    return torch.cat([own, reference], dim=2).flatten(0, 1)
