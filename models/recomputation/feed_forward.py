"""A transformer block's feed-forward layer that keeps its input alone, and recomputes the rest.

diffusers' layer keeps 17 times the size of its tokens for the backward pass. Here that pass is written out:
it recomputes the first product but not the second, and on a CPU it goes over the tokens in pieces that
fit a core's cache, which makes up for the product.
"""

from collections.abc import Iterator

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .saved_tensors import autocast_of

_aten = torch.ops.aten

# 128 to 1,024 tokens at once took the same time, all of them up to half as long again.
CPU_TOKENS = 512


def has_gated_feed_forward(block: BasicTransformerBlock) -> bool:
    """Return whether the block ends in layer norm, GEGLU, linear layer, as SD's and AnimateDiff's do."""
    layers = block.ff.net
    if len(layers) != 3 or type(layers[0]) is not GEGLU or layers[1].p != 0:
        return False
    products = layers[0].proj, layers[2]
    return (
        type(block.norm3) is nn.LayerNorm
        and all(type(layer) is nn.Linear for layer in products)  # an adapter's is a class of its own
        and all(layer.bias is not None for layer in (block.norm3, *products))
    )


def feed_forward(block: BasicTransformerBlock, tokens: Tensor) -> Tensor:
    """Return the block's feed-forward layer [N, L, C] of the norm of its tokens [N, L, C]."""
    norm, first, last = block.norm3, block.ff.net[0].proj, block.ff.net[2]
    _, precision, _ = autocast_of(tokens)
    weights = (norm.weight, norm.bias, first.weight, first.bias, last.weight, last.bias)
    return _FeedForward.apply(tokens, norm.eps, precision, *weights)


class _FeedForward(torch.autograd.Function):
    """(value * gelu(gate)) W2 + b2 of value, gate = norm(tokens) W1 + b1: GEGLU, arXiv:2002.05202, eq. 6."""

    @staticmethod
    def forward(ctx, tokens: Tensor, epsilon: float, precision: torch.dtype, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, *weights)
        ctx.epsilon, ctx.precision = epsilon, precision
        norm, norm_bias, first, first_bias, last, last_bias = _cast(weights, precision)
        flat = tokens.flatten(0, -2)
        output = flat.new_empty((len(flat), len(last)), dtype=precision)
        for piece in _pieces(flat, precision):
            normed = _layer_norm(flat[piece], norm, norm_bias, epsilon)[0].to(precision)
            value, gate = torch.addmm(first_bias, normed, first.t()).chunk(2, dim=-1)
            torch.addmm(last_bias, _aten.gelu(gate).mul_(value), last.t(), out=output[piece])
        return output.unflatten(0, tokens.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        tokens, *weights = ctx.saved_tensors
        norm, norm_bias, first, first_bias, last, _ = _cast(weights, ctx.precision)
        needs = ctx.needs_input_grad[-len(weights) :]
        totals = [
            torch.zeros_like(weight) if need else None for weight, need in zip(weights, needs, strict=True)
        ]
        of_norm, of_norm_bias, of_first, of_first_bias, of_last, of_last_bias = totals
        flat, gradient = tokens.flatten(0, -2), gradient.flatten(0, -2)
        of_tokens = torch.empty_like(flat)
        for piece in _pieces(flat, ctx.precision):
            normed, mean, scale = _layer_norm(flat[piece], norm, norm_bias, ctx.epsilon)
            entered = normed.to(ctx.precision)
            projected = torch.addmm(first_bias, entered, first.t())
            value, gate = projected.chunk(2, dim=-1)
            gelu = _aten.gelu(gate)
            if of_last is not None:
                _add_product(of_last, gradient[piece].t(), value * gelu)
            of_product = gradient[piece] @ last
            of_gelu = of_product * value
            # In the place of value and gate come their gradients.
            torch.mul(of_product, gelu, out=value)
            _aten.gelu_backward.grad_input(of_gelu, gate, grad_input=gate)
            if of_first is not None:
                _add_product(of_first, projected.t(), entered)
            of_tokens[piece], *of_norms = _aten.native_layer_norm_backward(
                (projected @ first).to(normed.dtype), flat[piece].to(normed.dtype), norm.shape, mean, scale,
                norm, norm_bias, [True, needs[0], needs[1]],
            )  # fmt: skip
            parts = (
                *of_norms,
                projected.sum(0) if needs[3] else None,
                gradient[piece].sum(0) if needs[5] else None,
            )
            for total, part in zip((of_norm, of_norm_bias, of_first_bias, of_last_bias), parts, strict=True):
                if total is not None:
                    total += part
        return of_tokens.view_as(tokens), None, None, *totals


def _pieces(tokens: Tensor, precision: torch.dtype) -> Iterator[slice]:
    """Return slices of the tokens [N*L, C]: all on a GPU, and in half precision, where each sum rounds."""
    is_in_pieces = tokens.device.type == "cpu" and precision == torch.float32
    size = CPU_TOKENS if is_in_pieces else len(tokens)
    return (slice(start, start + size) for start in range(0, len(tokens), size))


def _cast(weights: tuple[Tensor, ...], precision: torch.dtype) -> list[Tensor]:
    """Return the weights as autocast casts them, the norm's as they are; cast twice rather than kept."""
    return [*weights[:2], *(weight.to(precision) for weight in weights[2:])]


def _layer_norm(
    tokens: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return normed tokens, their means and 1 / standard deviation, in the weights' precision."""
    return _aten.native_layer_norm(tokens.to(weight.dtype), weight.shape, weight, bias, epsilon)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to the total, which may be of another precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
