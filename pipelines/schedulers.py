"""Solvers of sampling, diffusers' own, on the schedule that a model was trained with.

Noise levels are sigma = sqrt((1 - a) / a), a = cumulative product of 1 - beta: infinite at zero terminal SNR
(arXiv:2305.08891), where the first step sees noise alone. The multistep solvers count in logarithms of it:
diffusers gives them 4,096 there, which moves the first step's prediction by 1/4,096 of the noise.
"""

import contextlib
from collections.abc import Iterator

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from system.errors import ConfigError

_KINDS = {
    "ddim": (DDIMScheduler, {}),  # arXiv:2010.02502
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    # arXiv:2302.04867; its other form, bh1, ends in NaN: the last step goes to a noise level of 0.
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2"}),
}
SCHEDULERS = tuple(_KINDS)


def make_scheduler(name: str, trained: DDIMScheduler) -> SchedulerMixin:
    """Return the solver, one of SCHEDULERS, for the schedule of `trained`.

    Raises ConfigError for an unknown name, and for a schedule that the solver cannot follow.
    """
    if name not in _KINDS:
        raise ConfigError(f"scheduler {name!r}: choose one of {', '.join(SCHEDULERS)}")
    kind, options = _KINDS[name]
    config = trained.config
    starts_from_noise = config.rescale_betas_zero_snr and config.timestep_spacing != "leading"
    if config.prediction_type == "epsilon" and starts_from_noise:
        problem = "the model's scheduler has prediction_type epsilon and rescale_betas_zero_snr"
        reason = "at zero SNR the noise says nothing about the picture, and no solver can start"
        fix = "set in scheduler/scheduler_config.json which of the two it was trained with"
        raise ConfigError(f"{problem}: {reason}; {fix}")
    if name != "ddim":
        if config.get("clip_sample"):
            problem = f"scheduler {name}: the model's scheduler clips its samples (clip_sample)"
            raise ConfigError(f"{problem}, which only ddim can do: take ddim")
        ends_at_zero = config.get("set_alpha_to_one", True)
        options = {**options, "final_sigmas_type": "zero" if ends_at_zero else "sigma_min"}
    return kind.from_config(config, **options)


@contextlib.contextmanager
def scheduled(pipeline: DiffusionPipeline, name: str) -> Iterator[None]:
    """Let the pipeline take the sampling steps of a scheduler in the block, instead of the trained one."""
    trained = pipeline.scheduler
    try:
        if name != SCHEDULERS[0]:
            pipeline.scheduler = make_scheduler(name, trained)
        yield
    finally:
        pipeline.scheduler = trained


def set_steps(scheduler: SchedulerMixin, num_steps: int, device: torch.device | str | None = None) -> None:
    """Set the scheduler's timesteps, `num_steps` of them.

    For 62 numbers of steps (61 and 103, say) diffusers' trailing spacing rounds to one more, at timestep -1.
    """
    scheduler.set_timesteps(num_steps)  # on the CPU, where reading them waits for no device
    if scheduler.timesteps[-1] < 0:
        scheduler.timesteps = scheduler.timesteps[:-1]
        scheduler.num_inference_steps = num_steps
        if not isinstance(
            scheduler, DDIMScheduler
        ):  # the multistep solvers' levels, one more than their steps
            scheduler.sigmas = torch.cat([scheduler.sigmas[:num_steps], scheduler.sigmas[-1:]])
    scheduler.timesteps = scheduler.timesteps.to(device)


def noise_levels(scheduler: SchedulerMixin) -> Tensor:
    """Return the noise level of each step that is set, float32 [steps]; infinite at zero SNR."""
    kept = torch.cumprod(1 - scheduler.betas, dim=0)[scheduler.timesteps.cpu()]
    return ((1 - kept) / kept).sqrt()


def in_interval(level: float | Tensor, interval: tuple[float, float] | None) -> bool:
    """Return whether low < level <= high: where guidance is worth its cost (arXiv:2404.07724).

    None is every level.
    """
    return interval is None or bool(interval[0] < level <= interval[1])
