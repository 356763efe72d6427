"""The levels of gradient checkpointing.

One function per level, called with a block and its arguments. diffusers calls it for its residual and
transformer blocks, ours for motion modules and the guidance encoders' convolutions. None is reentrant: the
reentrant kind loses the gradients that reach the reference UNet through the bank.

"selective" lets PyTorch recompute residual blocks and convolutions but for their expensive operations.
Transformer blocks, with five times as many operations to watch, keep less by themselves:
transformer_block.py.
"""

from collections.abc import Callable

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from system.errors import ModelError

from .transformer_block import call_keeping_less, can_keep_less

CHECKPOINTING_LEVELS = ("none", "selective", "all")

_aten = torch.ops.aten
_ATTENTION = (
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
)

# An output this many times as large as its input costs little and fills much: an encoder's first
# convolution, say, of 3 channels to 16 at the size of the frames.
WIDENING = 4

# A convolution of fewer products per value costs little for what it fills: an encoder's first ones, of 16
# channels at the size of the frames.
FEW_PRODUCTS = 256


def checkpoint_function(level: str) -> Callable | None:
    """Return the function that calls a block so that `level` is recomputed; None where nothing is.

    Raise ModelError when the level is unknown.
    """
    if level not in CHECKPOINTING_LEVELS:
        raise ModelError(
            f"gradient checkpointing {level!r} is unknown: choose one of {', '.join(CHECKPOINTING_LEVELS)}"
        )
    return {"none": None, "selective": _call_selectively, "all": call_recomputed}[level]


def call_recomputed(block: Callable, *arguments):
    """Return the block's output; the backward pass runs the block again."""
    return checkpoint(block, *arguments, use_reentrant=False)


def _call_selectively(block: Callable, *arguments):
    """Return the block's output; the graph keeps what is expensive, the backward pass recomputes the rest."""
    if not _has_backward(block, arguments):
        return block(*arguments)  # watching its operations would cost, and save nothing
    if isinstance(block, AnimateDiffTransformer3D):
        return block(*arguments)  # its transformer blocks come here one by one
    if can_keep_less(block):
        return call_keeping_less(block, *arguments)
    return checkpoint(block, *arguments, use_reentrant=False, context_fn=_selective_contexts)


def takes_blocks(function: Callable | None) -> bool:
    """Return whether a level's function takes a motion module's transformer blocks, not the whole module."""
    return function is _call_selectively


def _has_backward(block: Callable, arguments: tuple) -> bool:
    """Return whether a gradient will flow through the block; a method stands for its module."""
    if not torch.is_grad_enabled():
        return False
    module = getattr(block, "__self__", block)
    return any(isinstance(value, Tensor) and value.requires_grad for value in arguments) or any(
        parameter.requires_grad for parameter in module.parameters()
    )


def _selective_contexts() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """Return the modes that see the operations of a block's forward pass and of its recomputation."""
    keeping, recomputing = create_selective_checkpoint_contexts(_keep)
    return _ExpensiveOperations(keeping), _ExpensiveOperations(recomputing)


def _keep(context, operation, *arguments, **keywords) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


class _ExpensiveOperations(TorchDispatchMode):
    """Shows PyTorch's mode the expensive operations alone: others take it 12 to 16 microseconds, this 9."""

    def __init__(self, mode: TorchDispatchMode):
        super().__init__()
        self.mode = mode

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        is_expensive = _IS_EXPENSIVE.get(operation)
        if is_expensive is not None and is_expensive(args):
            return self.mode.__torch_dispatch__(operation, types, args, kwargs)
        return operation(*args, **(kwargs or {}))


def _is_expensive_product(right: Tensor) -> bool:
    num_inputs, num_outputs = right.shape[-2:]
    return num_outputs < WIDENING * num_inputs


def _is_expensive_convolution(weight: Tensor) -> bool:
    return weight.shape[0] < WIDENING * weight.shape[1] and weight[0].numel() >= FEW_PRODUCTS


# {operation: whether it is expensive with these arguments}: convolutions, matrix products and attention stay;
# norms, activations, copies and sums do not.
_IS_EXPENSIVE = {
    _aten.mm.default: lambda arguments: _is_expensive_product(arguments[1]),
    _aten.bmm.default: lambda arguments: _is_expensive_product(arguments[1]),
    _aten.addmm.default: lambda arguments: _is_expensive_product(arguments[2]),
    _aten.baddbmm.default: lambda arguments: _is_expensive_product(arguments[2]),
    _aten.convolution.default: lambda arguments: _is_expensive_convolution(arguments[1]),
    **dict.fromkeys(_ATTENTION, lambda _: True),
}
