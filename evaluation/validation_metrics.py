"""The metrics of a run's validation: functions that register themselves, one file of this folder per family.

A user's own metric registers itself the same way, from a file that --guidance_modules names.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import evaluation


@dataclass
class ValidationRun:
    """What a metric may look at: the model in evaluation mode, the fixed clips, and one of them sampled."""

    model: nn.Module
    objective: object  # it scores as training's does: see guidance_gaps.Objective
    clips: Sequence  # guidance_gaps.EncodedClip
    batch_size: int  # what fits in training with gradients fits here without
    shown: dict  # the sampled clip as the dataset has it: frames [F, 3, H, W] in [-1, 1], guidance, ...
    sample: Callable[[], Tensor]

    @functools.cached_property
    def prediction(self) -> Tensor:
        """The shown clip as sampled by the model, float [F, 3, H, W] in [-1, 1]."""
        return self.sample()


ValidationMetric = Callable[[ValidationRun], dict[str, float]]
_METRICS: dict[str, ValidationMetric] = {}


def register_validation_metric(name: str) -> Callable[[ValidationMetric], ValidationMetric]:
    """Register a function from a ValidationRun to {TensorBoard name: value}, under its own name."""

    def register(metric: ValidationMetric) -> ValidationMetric:
        _METRICS[name] = metric
        return metric

    return register


@torch.no_grad()
def measure_validation(run: ValidationRun) -> dict[str, float]:
    """Return the scalars of all registered metrics; every file of this folder is asked for its own."""
    for module in pkgutil.iter_modules(evaluation.__path__):
        importlib.import_module(f"evaluation.{module.name}")
    scalars = {}
    for metric in _METRICS.values():
        scalars |= metric(run)
    return scalars
