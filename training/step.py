"""The training step, once: a micro-batch's forward and backward pass, and the update that follows.

The loop, the benchmark of a step and the simulation of its memory all call these functions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim import Optimizer

from .optimization import clip_gradients, gradient_norms, trained_parameters, trained_shares
from .settings.fields import OptimizationSettings


@dataclass
class MicroBatch:
    """What one forward and backward pass saw, kept until the step is known to be good."""

    sample_ids: list[str]
    loss: Tensor  # scalar; detached after the backward pass
    repeat: Callable[[nn.Module], Tensor]  # the forward pass once more, to find the module that went bad
    timesteps: Tensor | None = None  # int64 [B], of a diffusion model


@dataclass
class StepFacts:
    """What all processes agree on about a step."""

    loss: float  # the mean over all clips of the step
    grad_norms: dict[str, float]  # of the model's parts, before clipping
    signal_number: int = 0  # of a request to stop that any process got, else 0

    @property
    def grad_norm(self) -> float:
        return math.hypot(*self.grad_norms.values())

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Update:
    """The model's trained parameters, and all that changes them.

    `model` is the bare one; `parts` {part: its trained parameters} are those whose gradient norms are logged.
    """

    def __init__(
        self, model: nn.Module, parts: dict[str, list[nn.Parameter]], optimizer: Optimizer,
        ema: EMAModel | None = None,
    ):  # fmt: skip
        self.model, self.parts, self.optimizer, self.ema = model, parts, optimizer, ema
        self.parameters = trained_parameters(model)

    def __call__(self, facts: StepFacts, settings: OptimizationSettings, *, has_scaler: bool = False) -> None:
        """Clip, step and average, unless a number is not finite; then free or zero the gradients."""
        if facts.is_finite:
            clip_gradients(self.parameters, settings.max_grad_norm, facts.grad_norm)
        if facts.is_finite or has_scaler:  # the scaler skips the step by itself
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=settings.set_grads_to_none)
        if self.ema is not None and facts.is_finite:
            # It takes a copy of the weights' size: where the gradients were.
            self.ema.step(trained_shares(self.model))


def run_micro_batch(accelerator: Accelerator, task, model: nn.Module, batch: dict) -> MicroBatch:
    """Return one micro-batch after its forward and backward pass; the gradients are in the parameters."""
    with accelerator.accumulate(model):
        micro_batch = task.loss(model, batch)
        accelerator.backward(micro_batch.loss)
    micro_batch.loss = micro_batch.loss.detach()
    return micro_batch


def agree_on_step(
    accelerator: Accelerator, micro_batches: Sequence[MicroBatch], parts: dict[str, list[nn.Parameter]],
    signal_number: int = 0,
) -> StepFacts:  # fmt: skip
    """Return the step's facts, the same in every process. The CPU waits for the GPU here."""
    accelerator.unscale_gradients()
    grad_norms = gradient_norms(parts)
    loss = torch.stack([one.loss for one in micro_batches]).mean()
    signal_seen = torch.tensor(float(signal_number), device=loss.device)
    mine = torch.stack([loss.float(), signal_seen, *grad_norms.values()])
    everyone = accelerator.gather(mine[None]).cpu()  # [processes, 2 + parts]
    loss, _, *norms = everyone.mean(0).tolist()
    return StepFacts(loss, dict(zip(grad_norms, norms, strict=True)), int(everyone[:, 1].max()))
