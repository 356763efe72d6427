"""AdamW, learning-rate schedule, averaged weights and the gradient norms that are logged."""

import importlib
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .errors import ConfigError
from .settings import TrainingArguments


def make_optimizer(groups: list[dict], arguments: TrainingArguments) -> Optimizer:
    """Return AdamW over the groups, in 8 bits with --use_8bit_adam."""
    settings = {
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "weight_decay": arguments.adam_weight_decay,
        "eps": arguments.adam_epsilon,
    }
    if arguments.use_8bit_adam:
        return optional_package("bitsandbytes", "--use_8bit_adam").optim.AdamW8bit(groups, **settings)
    # One kernel for all parameters: on 2 CPU cores a small model's update is several times faster.
    return torch.optim.AdamW(groups, fused=True, **settings)


def optional_package(name: str, flag: str):
    """Return an imported package. Raises ConfigError with what to install when it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"{flag} needs {name}: run `pip install {name}`, or leave the flag out") from None


def make_lr_scheduler(optimizer: Optimizer, arguments: TrainingArguments, num_steps: int) -> LRScheduler:
    """Return the schedule, counted in optimizer steps whatever the number of processes."""
    name = arguments.lr_scheduler
    if name == "constant" and arguments.lr_warmup_steps > 0:
        name = "constant_with_warmup"  # diffusers' "constant" ignores the warm-up
    return get_scheduler(
        name,
        optimizer=optimizer,
        num_warmup_steps=arguments.lr_warmup_steps,
        num_training_steps=num_steps,
        num_cycles=arguments.lr_num_cycles,
        power=arguments.lr_power,
    )


def schedule_state(lr_scheduler: LRScheduler) -> dict:
    """Return the schedule's state as plain numbers, for JSON."""
    return {key: value for key, value in lr_scheduler.state_dict().items() if key != "lr_lambdas"}


def restore_schedule(lr_scheduler: LRScheduler, state: dict) -> None:
    lr_scheduler.load_state_dict({**lr_scheduler.state_dict(), **state})


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_ema(model: nn.Module, decay: float) -> EMAModel:
    """Return a running average of the trained weights."""
    return EMAModel(trained_parameters(model), decay=decay, foreach=True)


@contextmanager
def averaged_weights(model: nn.Module, ema: EMAModel | None):
    """Let `model` have the averaged weights inside the block; without `ema` its own."""
    if ema is None:
        yield
        return
    parameters = trained_parameters(model)
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def gradient_norms(
    parts: dict[str, Sequence[nn.Parameter]], total: float, max_grad_norm: float
) -> dict[str, float]:
    """Return {grad_norm/part: norm of its gradient before clipping}, read from the clipped gradients."""
    norms = {}
    for part, parameters in parts.items():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            norms[f"grad_norm/{part}"] = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if not norms:
        return {}
    clipped_by = max(1.0, (total + 1e-6) / max_grad_norm)  # as torch's clip_grad_norm_ does
    values = torch.stack(list(norms.values())) * clipped_by
    return dict(zip(norms, values.tolist(), strict=True))
