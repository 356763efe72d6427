"""A transformer block's forward pass that keeps less for its backward pass, for almost no time.

Projections and attention stay. The backward pass recomputes the rest: the feed-forward layer, the norms
before attentions, and keys and values joined with the reference's.

An attention processor may say two things of itself: `recomputes_joined`, that it takes an argument of this
name, and `writes_input`, that its input is kept elsewhere anyway.
"""

from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor
from torch.nn import Module

from .feed_forward import feed_forward, has_gated_feed_forward
from .saved_tensors import autocast_of, recomputed


def can_keep_less(block: object) -> bool:
    """Return whether `block` is a transformer block of the kind of Stable Diffusion's and AnimateDiff's.

    Hooks on what `call_keeping_less` does not call as modules would be missed: such a block is none.
    """
    return (
        isinstance(block, BasicTransformerBlock)
        and block.norm_type == "layer_norm"
        and not block.only_cross_attention
        and not hasattr(block, "fuser")  # GLIGEN's, between the attentions
        and has_gated_feed_forward(block)
        and not any(_has_hooks(module) for module in (block, block.norm3, *block.ff.modules()))
    )


def _has_hooks(module: Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def call_keeping_less(
    block: BasicTransformerBlock, tokens: Tensor, attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
    timestep=None, cross_attention_kwargs: dict | None = None, class_labels=None,
) -> Tensor:  # fmt: skip
    """Return the output [N, L, C] of the block for tokens [N, L, C]; the arguments are diffusers'."""
    arguments = dict(cross_attention_kwargs or {})
    own_arguments = arguments | {"attention_mask": attention_mask}
    if getattr(block.attn1.processor, "recomputes_joined", False):
        own_arguments["recomputes_joined"] = True
    tokens = tokens + _attend(block, block.norm1, block.attn1, tokens, **own_arguments)
    if block.attn2 is not None:
        arguments |= {
            "encoder_hidden_states": encoder_hidden_states,
            "attention_mask": encoder_attention_mask,
        }
        tokens = tokens + _attend(block, block.norm2, block.attn2, tokens, **arguments)
    return tokens + feed_forward(block, tokens)


def _attend(
    block: BasicTransformerBlock, norm: Module, attention: Module, tokens: Tensor, **arguments
) -> Tensor:
    """Return attention [N, L, C] to the norm of the tokens; the graph keeps the tokens, not the norm."""
    _, precision, is_mixed = autocast_of(tokens)
    widens = is_mixed and norm(tokens.detach()[:0]).dtype != tokens.dtype  # a GPU's autocast, not a CPU's

    def widened() -> Tensor:
        return tokens.float() if widens else tokens

    def normed(tokens: Tensor) -> Tensor:  # cast once, not in each projection
        normed = norm(tokens)
        return (normed if block.pos_embed is None else block.pos_embed(normed)).to(precision)

    if getattr(attention.processor, "writes_input", False):
        return attention(normed(tokens), **arguments)
    with recomputed(tokens) as recompute_with:
        wide = recompute_with(widened(), widened)
        return attention(recompute_with(normed(wide), lambda: normed(widened())), **arguments)
