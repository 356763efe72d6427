"""Blocks compiled by PyTorch one by one (regional compilation), for the steps of a training alone.

A block's `forward` is replaced on the block itself: names of weights, hooks, checkpointing around blocks,
DDP and FSDP stay as they are. Blocks of the same shapes share their code. Validation, which comes in other
shapes, runs uncompiled. What cannot be compiled runs uncompiled too, and the log says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch._dynamo
import torch._functorch.config
import torch._inductor.config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

# Small enough for checkpointing to go around them: inside of compiled code it could not repeat what the
# reference UNet writes into its bank.
COMPILED_BLOCKS = (ResnetBlock2D, BasicTransformerBlock)
HINTS = {
    "C++ compiler": "install one (g++, clang or MSVC)",
    "Python.h": "install Python's development files",
    "triton": "pip install triton",
}


def compile_blocks(
    model: nn.Module, say: Callable[[str], None], *, single_frames: bool, backend: str = "inductor"
) -> None:
    """Let the UNets' blocks in a ChampModel be compiled when a training step first calls them.

    `say` gets a line now, and one when all have been called.
    """
    _configure()
    unets = compiled_unets(model, single_frames=single_frames)
    blocks = [module for unet in unets for module in unet.modules() if isinstance(module, COMPILED_BLOCKS)]
    progress = _Progress(blocks, say)
    try:
        compiled = [
            torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend) for block in blocks
        ]
    except RuntimeError as error:  # this Python or system has no torch.compile
        say(f"--compile: the run goes on uncompiled: {_reason(error)}")
        return
    say(f"compiling {len(blocks)} blocks in the first step; that takes minutes where it was not done before")
    for block, function in zip(blocks, compiled, strict=True):
        block.forward = _BlockForward(block, function, progress)


def compiled_unets(model: nn.Module, *, single_frames: bool) -> list[nn.Module]:
    """Return the UNets whose blocks are compiled.

    The reference UNet sees one picture of a clip: it is one of them where clips are `single_frames`;
    elsewhere it takes a few hundredths of a step.
    """
    return [model.unet, model.reference_unet] if single_frames else [model.unet]


def _configure() -> None:
    """Settings of torch.compile for this process."""
    torch._dynamo.config.recompile_limit = 256  # codes of a kind of block: the default of 8 is too few
    torch._dynamo.config.optimize_ddp = False  # it cuts graphs at DDP's buckets: ours are smaller than that
    # A backward pass that cannot be compiled is noticed in the forward pass, where there is a way back.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    # No choice by the clock among kernels that round differently: a resumed run has the same bits.
    torch._inductor.config.deterministic = True


class _BlockForward:
    """A block's forward: the compiled one in training mode, else the one that it had."""

    def __init__(self, block: nn.Module, compiled: Callable, progress: _Progress):
        self.block = block
        self.plain = block.forward
        self.compiled = compiled
        self.progress = progress
        self.is_compiled = False

    def __call__(self, *args, **kwargs):
        if not self.block.training or not (self.is_compiled or self.progress.may_compile(self.block)):
            return self.plain(*args, **kwargs)
        args = [self._with_own_reference(value) for value in args]
        kwargs = {name: self._with_own_reference(value) for name, value in kwargs.items()}
        start = time.perf_counter()
        try:
            output = self.compiled(*args, **kwargs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self.is_compiled = False
            self.progress.failed(self.block, error)
            return self.plain(*args, **kwargs)
        if not self.is_compiled:
            # Once compiled it stays so, whatever becomes of others: checkpointing calls it again, and expects
            # the same tensors.
            self.is_compiled = True
            self.progress.done(self.block, time.perf_counter() - start)
        return output

    def _with_own_reference(self, value):
        """Look the block's entry in the reference bank up: to do it inside, by name, takes a code a block."""
        if not isinstance(value, dict) or not isinstance(value.get("reference_bank"), dict):
            return value
        return value | {"reference_bank": value["reference_bank"][self.block.attn1.processor.name]}


class _Progress:
    """Which blocks are still to be compiled, and which kinds cannot be."""

    def __init__(self, blocks: list[nn.Module], say: Callable[[str], None]):
        self.say = say
        self.waiting = set(blocks)
        self.num_blocks = len(blocks)
        self.num_compiled, self.seconds = 0, 0.0
        self.faults: dict[type, str] = {}  # {kind of block: why}

    def may_compile(self, block: nn.Module) -> bool:
        if _kind(block) not in self.faults:
            return True
        self._called(block)
        return False

    def done(self, block: nn.Module, seconds: float) -> None:
        self.num_compiled += 1
        self.seconds += seconds
        self._called(block)

    def failed(self, block: nn.Module, error: Exception) -> None:
        self.faults.setdefault(_kind(block), _reason(error))
        if block in self.waiting:
            self._called(block)
        else:
            self.say(f"--compile: a {_kind(block).__name__} runs uncompiled from here on: {_reason(error)}")

    def _called(self, block: nn.Module) -> None:
        if block not in self.waiting:
            return
        self.waiting.remove(block)
        if self.waiting:
            return
        if self.num_compiled:
            self.say(f"compiling {self.num_compiled} of {self.num_blocks} blocks: {self.seconds:.1f} s")
        # One reason is enough where it is the same for all: no compiler, say.
        for reason in dict.fromkeys(self.faults.values()):
            kinds = " and ".join(kind.__name__ for kind, why in self.faults.items() if why == reason)
            what = f"{kinds} runs" if self.num_compiled else "the run goes on"
            self.say(f"--compile: {what} uncompiled: {reason}")


def _kind(block: nn.Module) -> type:
    return next(kind for kind in COMPILED_BLOCKS if isinstance(block, kind))


def _reason(error: Exception) -> str:
    """Return the innermost exception's message in a line, and what helps where that is known."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    lines = [line for line in text.splitlines() if "error:" in line]  # of a compiler's long output
    message = " ".join((lines[0] if lines else text.split("\n\n")[0]).split())[:300]
    return message + next((f"; {hint}" for words, hint in HINTS.items() if words in text), "")
