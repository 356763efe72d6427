"""Blocks of the UNets compiled by PyTorch one by one (regional compilation), for training or for sampling.

A block's `forward` is replaced on the block itself: names of weights, hooks, checkpointing around blocks,
DDP and FSDP stay as they are. Blocks of the same shapes share their code. What cannot be compiled runs
uncompiled, and a line says so.
"""

import functools
import time
from collections.abc import Callable, Iterable

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
    unets: Iterable[nn.Module], say: Callable[[str], None], *, training: bool, backend: str = "inductor"
) -> None:
    """Let the UNets' blocks be compiled when they are first called in training mode, or in the other.

    In the mode that is not asked for they run uncompiled: a training's validation, say, which comes in other
    shapes. `say` gets a line now, and one when all have been called.
    """
    _configure()
    blocks = [module for unet in unets for module in unet.modules() if isinstance(module, COMPILED_BLOCKS)]
    try:
        compiled = [
            torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend) for block in blocks
        ]
    except RuntimeError as error:  # this Python or system has no torch.compile
        say(f"--compile: the run goes on uncompiled: {_reason(error)}")
        return
    say(f"compiling {len(blocks)} blocks in the first step; that takes minutes where it was not done before")
    compilation = _Compilation(blocks, say, training)
    for block, function in zip(blocks, compiled, strict=True):
        block.forward = functools.partial(compilation.run, block, block.forward, function)


def _configure() -> None:
    """Set torch.compile up for this process."""
    torch._dynamo.config.recompile_limit = 256  # codes per kind of block: the default of 8 is too few
    torch._dynamo.config.optimize_ddp = False  # it cuts graphs at DDP's buckets: ours are smaller than that
    # A backward pass that cannot be compiled is noticed in the forward pass, where there is a way back.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    # No choice by the clock among kernels that round differently: a run that is resumed and a sample that is
    # made again have the same bits.
    torch._inductor.config.deterministic = True


class _Compilation:
    """The blocks to compile: which are still to be called, which are compiled, which kinds cannot be."""

    def __init__(self, blocks: list[nn.Module], say: Callable[[str], None], training: bool):
        self.waiting, self.num_blocks, self.say = set(blocks), len(blocks), say
        self.training = training  # which mode is compiled
        self.seconds: dict[nn.Module, float] = {}  # {compiled block: what its first call took}
        self.faults: dict[type, str] = {}  # {kind of block: why}

    def run(self, block: nn.Module, plain: Callable, compiled: Callable, *args, **kwargs):
        """Call a block's compiled forward in the mode that is compiled, else the one that it had."""
        if block.training != self.training:
            return plain(*args, **kwargs)
        # Once compiled it stays so, whatever becomes of others: checkpointing calls it again, and expects the
        # same tensors.
        if block in self.seconds or _kind(block) not in self.faults:
            start = time.perf_counter()
            try:
                output = compiled(
                    *(_with_own_reference(block, value) for value in args),
                    **{name: _with_own_reference(block, value) for name, value in kwargs.items()},
                )
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                self.seconds.pop(block, None)
                self.faults.setdefault(_kind(block), _reason(error))
                if block not in self.waiting:
                    name = _kind(block).__name__
                    self.say(f"--compile: a {name} runs uncompiled from here on: {_reason(error)}")
            else:
                self.seconds.setdefault(block, time.perf_counter() - start)
                self._note_call(block)
                return output
        self._note_call(block)
        return plain(*args, **kwargs)

    def _note_call(self, block: nn.Module) -> None:
        """Report, when the last block has been called for the first time."""
        if block not in self.waiting:
            return
        self.waiting.remove(block)
        if self.waiting:
            return
        if self.seconds:
            seconds = sum(self.seconds.values())
            self.say(f"compiling {len(self.seconds)} of {self.num_blocks} blocks: {seconds:.1f} s")
        # One reason is enough where it is the same for all: no compiler, say.
        for reason in dict.fromkeys(self.faults.values()):
            kinds = " and ".join(kind.__name__ for kind, why in self.faults.items() if why == reason)
            what = f"{kinds} runs" if self.seconds else "the run goes on"
            self.say(f"--compile: {what} uncompiled: {reason}")


def _with_own_reference(block: nn.Module, value):
    """Look a block's entry in the reference bank up: inside, by name, it takes one code per block."""
    if not isinstance(value, dict) or not isinstance(value.get("reference_bank"), dict):
        return value
    return value | {"reference_bank": value["reference_bank"][block.attn1.processor.name]}


def _kind(block: nn.Module) -> type:
    return next(kind for kind in COMPILED_BLOCKS if isinstance(block, kind))


def _reason(error: Exception) -> str:
    """Return the innermost exception's message as one line, and what helps where that is known."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    lines = [line for line in text.splitlines() if "error:" in line]  # of a compiler's long output
    message = " ".join((lines[0] if lines else text.split("\n\n")[0]).split())[:300]
    return message + next((f"; {hint}" for words, hint in HINTS.items() if words in text), "")
