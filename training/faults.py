"""What can go wrong in the middle of a run: a partner that ends, non-finite numbers, no memory left."""

import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from system.errors import RunError
from training.execution.sharding import own_share, whole_weights

from .step import MicroBatch, StepFacts

MAX_SKIPPED_IN_A_ROW = 10
# Only CUDA has an exception of its own; these are PyTorch's words on a CPU (Linux, Windows) and on MPS.
OUT_OF_MEMORY_MARKS = ("can't allocate memory", "not enough memory", "out of memory")


class NonFiniteError(RunError):
    """The loss or gradient was not finite in too many steps in a row."""


@contextmanager
def lost_processes_explained():
    """Turn the fault of a process whose partner has ended into a RunError that points to the partner."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        rank = os.environ.get("RANK", "?")
        raise RunError(f"process {rank} ends because another one did: see its message") from None


class NonFiniteGuard:
    """Counts skipped steps, and stops a run in which nothing but they happens."""

    def __init__(self, steps_skipped: int = 0):
        self.steps_skipped = steps_skipped
        self.in_a_row = 0

    def step_was_good(self) -> None:
        self.in_a_row = 0

    def skip(self, step: int, found: str) -> str:
        """Count a skipped step and return the line to log. Raises NonFiniteError after too many in a row."""
        self.steps_skipped += 1
        self.in_a_row += 1
        message = f"step {step}: non-finite {found}; step skipped ({self.steps_skipped} so far)"
        if self.in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"{message}. {self.in_a_row} non-finite steps in a row: the run stops. Look at these "
                "samples; try a lower --learning_rate, --mixed_precision bf16 or no, or an earlier checkpoint"
            )
        return message


def is_scale_search(accelerator: Accelerator, facts: StepFacts) -> bool:
    """Return whether only fp16's gradients overflowed and the scale can still fall: no fault of the run."""
    scaler = accelerator.scaler
    return scaler is not None and math.isfinite(facts.loss) and scaler.get_scale() > 1.0


def describe_fault(facts: StepFacts, micro_batches: Sequence[MicroBatch], model: nn.Module) -> str:
    """Return what was not finite, where it began, and all processes' samples and timesteps in question.

    Every process calls it. Runs the forward pass of the bad micro-batches once more to find the first module.
    """
    # Processes share a gradient, so any of their samples may have spoilt it; a loss belongs to its samples.
    what = "gradient" if math.isfinite(facts.loss) else "loss"
    bad = [one for one in micro_batches if what == "gradient" or not torch.isfinite(one.loss)]
    with whole_weights(model):  # the processes look at different numbers of micro-batches
        module = next(filter(None, (first_bad_module(model, one) for one in bad)), None)
    samples = [name for one in bad for name in _samples_of(one)]
    reports = gather_object([(module, samples)])  # of all processes
    began = next((f"output of {module}" for module, _ in reports if module), None)
    if began is None:
        began = first_bad_gradient(model) if what == "gradient" else "loss function"
    samples = [sample for _, samples in reports for sample in samples]
    return f"{what}, first in the {began}; samples: {', '.join(samples)}"


def _samples_of(one: MicroBatch) -> list[str]:
    if one.timesteps is None:
        return one.sample_ids
    timesteps = one.timesteps.tolist()
    return [f"{name} at timestep {step}" for name, step in zip(one.sample_ids, timesteps, strict=True)]


@torch.no_grad()
def first_bad_module(model: nn.Module, one: MicroBatch) -> str | None:
    """Return the name of the first module whose output is not finite in a forward pass, or None."""
    found = []

    def hook_for(name: str) -> Callable:
        def hook(module, inputs, output):
            tensors = output if isinstance(output, tuple) else (output,)
            if any(isinstance(tensor, Tensor) and not torch.isfinite(tensor).all() for tensor in tensors):
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(hook_for(name)) for name, module in leaves]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled blocks do not call the hooks
            one.repeat(model)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def first_bad_gradient(model: nn.Module) -> str:
    """Return the parameter whose gradient the backward pass reached first, of those that are not finite."""
    for prefix, child in model.named_children():  # the denoising UNet comes first, and last in a forward pass
        for name, parameter in reversed(list(child.named_parameters(prefix))):
            if parameter.grad is not None and not torch.isfinite(own_share(parameter.grad)).all():
                return f"gradient of {name}"
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    return "norm of the gradients, which are finite" if alone else "gradient of another process"


# ---- out of memory ----


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in OUT_OF_MEMORY_MARKS)


@contextmanager
def out_of_memory_explained(advise: Callable[..., str]):
    """Turn running out of memory in the block into a RunError; advise(has_gpu=...) says what still helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        words = re.sub(r"^\[enforce fail.*?(?=Default)", "", " ".join(str(error).split()))
        found = ". ".join(words.split(". ")[:2]).rstrip(".")  # how much was asked for, and of which device
        advice = advise(has_gpu=torch.cuda.is_available())
        raise RunError(f"out of memory: {found or 'the system has no more'}. {advice}") from None
