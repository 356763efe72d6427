"""AdamW, learning-rate schedule, averaged weights and the gradient norms that are logged."""

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim import Optimizer

from training.execution.sharding import own_share, total_norm
from training.settings.fields import OptimizationSettings


def make_optimizer(groups: list[dict], settings: OptimizationSettings) -> Optimizer:
    """Return AdamW over the groups, in 8 bits with --use_8bit_adam."""
    adam = adam_settings(settings)
    if settings.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(groups, **adam)
    # One kernel for all parameters: on 2 CPU cores a small model's update is several times faster.
    return torch.optim.AdamW(groups, fused=True, **adam)


def adam_settings(settings: OptimizationSettings) -> dict:
    return {
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "weight_decay": settings.adam_weight_decay,
        "eps": settings.adam_epsilon,
    }


class LearningRateSchedule:
    """Learning rates as a function of the optimizer step alone, whatever the number of processes.

    No state: a resumed run computes them anew, from its own settings.
    """

    def __init__(self, optimizer: Optimizer, settings: OptimizationSettings, num_steps: int):
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        name = settings.lr_scheduler
        if name == "constant" and settings.lr_warmup_steps > 0:
            name = "constant_with_warmup"  # diffusers' "constant" ignores the warm-up
        self._factor = get_scheduler(
            name,
            optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
            num_warmup_steps=settings.lr_warmup_steps,
            num_training_steps=num_steps,
            num_cycles=settings.lr_num_cycles,
            power=settings.lr_power,
        ).lr_lambdas[0]

    def set(self, optimizer: Optimizer, step: int) -> float:
        """Give the optimizer the rates of its update number `step` (from 1); return that of new weights."""
        factor = self._factor(step - 1)
        for group, peak in zip(optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return self.peaks[0] * factor


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained_shares(model: nn.Module) -> list[Tensor]:
    """Return what this process holds of the trained parameters: all of them, unless the model is sharded."""
    with torch.enable_grad():  # else the shares would say that they are not trained
        return [own_share(parameter) for parameter in trained_parameters(model)]


def make_ema(model: nn.Module, decay: float) -> EMAModel:
    """Return a running average of the trained weights; of a sharded model, of this process's shares."""
    return EMAModel(trained_shares(model), decay=decay, foreach=True)


@contextmanager
def averaged_weights(model: nn.Module, ema: EMAModel | None):
    """Let `model` have the averaged weights inside the block; without `ema` its own."""
    if ema is None:
        yield
        return
    parameters = trained_shares(model)
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def gradient_norms(parts: dict[str, Sequence[nn.Parameter]]) -> dict[str, Tensor]:
    """Return {part: norm of its gradient}, scalars; a part that has no gradient is left out."""
    norms = {}
    for part, parameters in parts.items():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            norms[part] = total_norm(gradients)
    return norms


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, norm: float) -> None:
    """Scale gradients, whose norm is known and finite, down to `max_norm` if they are above it."""
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, torch.tensor(norm))
