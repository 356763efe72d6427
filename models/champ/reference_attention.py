"""Reference attention (CHAMP, arXiv:2403.14781) as attention processors over stock diffusers blocks.

The reference UNet writes the input of every spatial self-attention into a bank; the denoising UNet reads it:
each frame attends to its own tokens and to the reference's. The bank is an argument of the forward pass
(`cross_attention_kwargs`), keyed by processor name, which is the same in both UNets. Nothing is kept on
modules, so gradient accumulation, checkpointing and several calls in flight cannot mix banks up.
"""

import functools

import torch
from torch import Tensor, nn

from system.errors import ModelError

from .attention_backend import attend, attend_recomputed

Reference = Tensor | tuple[Tensor, Tensor]  # a bank's entry [B, L, C], or the keys and values of it


class SelfAttention:
    """Plain self-attention: the temporal attention of the motion modules."""

    def __init__(self, backend: str = "sdpa"):
        self.backend = backend

    def __call__(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None
    ) -> Tensor:
        return self.project_out(attn, hidden_states, attn.to_k(hidden_states), attn.to_v(hidden_states))

    def project_out(self, attn: nn.Module, hidden_states: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the output [N, L, C] of the attention layer for the given keys and values [N, M, C]."""
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


class WrittenBank:
    """What the reference UNet writes. No dict: hooks of offloading pass copies of those to what they call."""

    def __init__(self):
        self.tokens: dict[str, Tensor] = {}

    def __setitem__(self, name: str, tokens: Tensor) -> None:
        self.tokens[name] = tokens


class ReferenceWriteAttention(SelfAttention):
    """Self-attention of the reference UNet that records its input in `bank_to_write[name]` ([B, L, C])."""

    writes_input = True  # recomputation of it saves nothing: the bank keeps it

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
        bank_to_write: WrittenBank | None = None,
    ) -> Tensor:
        if bank_to_write is not None:
            bank_to_write[self.name] = hidden_states
            if self.is_last:
                return hidden_states  # nothing reads what follows the last write: the attention is left out
        return super().__call__(attn, hidden_states)


class ReferenceReadAttention(SelfAttention):
    """Self-attention of the denoising UNet over [own; reference] tokens."""

    recomputes_joined = True  # on demand, see __call__

    def __init__(self, name: str, backend: str = "sdpa"):
        super().__init__(backend)
        self.name = name

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states=None,
        attention_mask=None,
        reference_bank: dict[str, Reference] | Reference | None = None,
        reference_mask: Tensor | None = None,
        recomputes_joined: bool = False,
    ) -> Tensor:
        """Return the layer's output [B*F, L, C].

        hidden_states [B*F, L, C]; reference_bank[name] as bank or as `project` returns it, or that entry
        itself; reference_mask bool [B], False = own tokens; recomputes_joined: the graph keeps own and
        reference keys and values apart, and the backward pass joins them again.
        """
        key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        if reference_bank is None:
            return self.project_out(attn, hidden_states, key, value)
        # The projections run once per clip and are expanded over its frames, not once per frame.
        is_looked_up = not isinstance(reference_bank, dict)
        reference = reference_bank if is_looked_up else reference_bank[self.name]
        is_projected = isinstance(reference, tuple)
        reference_key, reference_value = reference if is_projected else self.project(attn, reference)
        if recomputes_joined:  # joined they are four times as large as the query
            pairs = (key, reference_key), (value, reference_value)
            makers = (functools.partial(join_reference, *pair, reference_mask) for pair in pairs)
            query = attn.to_q(hidden_states)
            return _leave(attn, attend_recomputed(query, *makers, attn.heads, self.backend))
        key = join_reference(key, reference_key, reference_mask)
        value = join_reference(value, reference_value, reference_mask)
        return self.project_out(attn, hidden_states, key, value)

    def project(self, attn: nn.Module, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the reference's tokens, [B, L, C] each: the same at every timestep."""
        return attn.to_k(reference), attn.to_v(reference)


def join_reference(own: Tensor, reference: Tensor, reference_mask: Tensor | None) -> Tensor:
    """Return [B*F, 2L, C]: own tokens [B*F, L, C] followed by the clip's reference tokens [B, L, C].

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
