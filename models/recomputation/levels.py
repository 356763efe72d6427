"""What the backward pass computes again instead of keeping: the levels of gradient checkpointing.

One function per level, called with a block and its arguments. diffusers calls it for its residual and
transformer blocks, ours for motion modules and the guidance encoders' convolutions. None is reentrant: the
reentrant kind loses the gradients that reach the reference UNet through the bank.

"selective" lets PyTorch repeat residual blocks and convolutions but for their dear operations. Transformer
blocks, which have five times as many operations to watch, keep less by themselves: see transformer_block.py.
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

# What is this many times as large as what it is made of costs little and fills much: an encoder's first
# convolution, of 3 channels to 16 at the size of the frames, say.
WIDENING = 4

# A convolution of fewer products a value costs little for what it fills: an encoder's first ones, of 16
# channels at the size of the frames.
FEW_PRODUCTS = 256


def checkpoint_function(level: str) -> Callable | None:
    """The function that calls a block so that `level` is recomputed; None where nothing is.

    Raises ModelError when the level is unknown.
    """
    if level not in CHECKPOINTING_LEVELS:
        raise ModelError(
            f"gradient checkpointing {level!r} is unknown: choose one of {', '.join(CHECKPOINTING_LEVELS)}"
        )
    return {"none": None, "selective": _call_selectively, "all": call_all}[level]


def call_all(block: Callable, *arguments):
    """The block's output; the backward pass runs the block again."""
    return checkpoint(block, *arguments, use_reentrant=False)


def _call_selectively(block: Callable, *arguments):
    """The block's output; what is dear stays, the backward pass computes the rest again from it."""
    if not _has_backward(block, arguments):
        return block(*arguments)  # watching its operations would cost, and save nothing
    if isinstance(block, AnimateDiffTransformer3D):
        return block(*arguments)  # its transformer blocks come here one by one
    if can_keep_less(block):
        return call_keeping_less(block, *arguments)
    return checkpoint(block, *arguments, use_reentrant=False, context_fn=_selective_contexts)


def takes_blocks(function: Callable | None) -> bool:
    """Whether a level's function is for a motion module's transformer blocks, and not for it as a whole."""
    return function is _call_selectively


def _has_backward(block: Callable, arguments: tuple) -> bool:
    """Whether a gradient will flow through the block; a method's block is the module that it belongs to."""
    if not torch.is_grad_enabled():
        return False
    module = getattr(block, "__self__", block)
    return any(isinstance(value, Tensor) and value.requires_grad for value in arguments) or any(
        parameter.requires_grad for parameter in module.parameters()
    )


def _selective_contexts() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """What watches the operations of a block's forward pass, and those of its repetition."""
    keeping, repeating = create_selective_checkpoint_contexts(_keep)
    return _DearOperations(keeping), _DearOperations(repeating)


def _keep(context, operation, *arguments, **keywords) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


class _DearOperations(TorchDispatchMode):
    """Shows PyTorch's mode the dear operations alone: others take it 12 to 16 microseconds, and this 9."""

    def __init__(self, mode: TorchDispatchMode):
        super().__init__()
        self.mode = mode

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        is_dear = _IS_DEAR.get(operation)
        if is_dear is not None and is_dear(args):
            return self.mode.__torch_dispatch__(operation, types, args, kwargs)
        return operation(*args, **(kwargs or {}))


def _is_dear_product(right: Tensor) -> bool:
    num_inputs, num_outputs = right.shape[-2:]
    return num_outputs < WIDENING * num_inputs


def _is_dear_convolution(weight: Tensor) -> bool:
    return weight.shape[0] < WIDENING * weight.shape[1] and weight[0].numel() >= FEW_PRODUCTS


# {operation: whether the one with these arguments is dear}: convolutions, matrix products and attention stay;
# norms, activations, copies and sums do not.
_IS_DEAR = {
    _aten.mm.default: lambda arguments: _is_dear_product(arguments[1]),
    _aten.bmm.default: lambda arguments: _is_dear_product(arguments[1]),
    _aten.addmm.default: lambda arguments: _is_dear_product(arguments[2]),
    _aten.baddbmm.default: lambda arguments: _is_dear_product(arguments[2]),
    _aten.convolution.default: lambda arguments: _is_dear_convolution(arguments[1]),
    **dict.fromkeys(_ATTENTION, lambda _: True),
}
