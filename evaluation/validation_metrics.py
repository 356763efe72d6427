"""The metrics of a run's validation: functions that register themselves, one file of this folder per family.

A user's own metric registers itself the same way, from a file that --guidance_modules names. Those of sampled
clips, which cost their sampling, are measured where they are asked for by name (`CLIP_METRICS`).
"""

import functools
import importlib
import itertools
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import evaluation
from datasets.body.regions import type_of_person
from pipelines.panels import frames_to_uint8

from .catalogue import METRICS
from .metrics import pixels, temporal


@dataclass(frozen=True)
class ClipMetric:
    """A metric of the catalogue that one short clip can give: `function` of what `inputs` name."""

    function: Callable[..., np.ndarray]  # values of the frames, NaN where one has nothing to say
    inputs: Sequence[str] = ("prediction", "truth")
    needs: str = "frames large enough to compare"


_TWO_FRAMES = "clips of at least two frames"
_POINTS = "key points of the person (a guidance type such as pose)"
_WITH_POINTS = ("prediction", "truth", "key_points")
CLIP_METRICS = {
    "psnr": ClipMetric(pixels.psnr),
    "ssim": ClipMetric(pixels.ssim),
    "l1": ClipMetric(pixels.l1),
    "psnr_legacy": ClipMetric(pixels.psnr_legacy),
    "ssim_legacy": ClipMetric(pixels.ssim_legacy),
    "l1_legacy": ClipMetric(pixels.l1_legacy),
    "hand_psnr": ClipMetric(pixels.hand_psnr, _WITH_POINTS, f"{_POINTS} with hands that are seen"),
    "face_psnr": ClipMetric(pixels.face_psnr, _WITH_POINTS, f"{_POINTS} with a face that is seen"),
    "dtssd": ClipMetric(temporal.dtssd, needs=_TWO_FRAMES),
    "background_flicker": ClipMetric(
        temporal.background_flicker, ("prediction", "key_points"), f"{_POINTS} in {_TWO_FRAMES}"
    ),
}
# No model is to be chosen by what serves to read published tables.
DIRECTIONS = {name: METRICS[name].higher_is_better for name in CLIP_METRICS if not name.endswith("_legacy")}


@dataclass
class ValidationRun:
    """What a metric may look at: the model in evaluation mode, the fixed clips, and one of them sampled."""

    model: nn.Module
    objective: object  # it scores as training's does: see guidance_gaps.Objective
    clips: Sequence  # guidance_gaps.EncodedClip
    batch_size: int  # what fits in training with gradients fits here without
    shown: dict  # the sampled clip as the dataset has it: frames [F, 3, H, W] in [-1, 1], guidance, ...
    sample: Callable[[dict], Tensor]  # a clip as the dataset has it, as the model samples it
    clip_metrics: Sequence[str] = ()  # names of CLIP_METRICS that are asked for
    others: Sequence[dict] = ()  # the other fixed clips, to be sampled for these metrics
    regions: Sequence[str] = ()  # names of datasets.body.regions.REGIONS whose loss is told apart
    training_clips: Sequence = ()  # guidance_gaps.EncodedClip; none where `clips` are training clips

    @functools.cached_property
    def prediction(self) -> Tensor:
        """The shown clip as sampled by the model, float [F, 3, H, W] in [-1, 1]."""
        return self.sample(self.shown)


ValidationMetric = Callable[[ValidationRun], dict[str, float]]
_METRICS: dict[str, ValidationMetric] = {}
_HIGHER_IS_BETTER: dict[str, bool] = {}  # of the TensorBoard names that a checkpoint can be the best by


def register_validation_metric(
    name: str, *, higher_is_better: Mapping[str, bool] | None = None
) -> Callable[[ValidationMetric], ValidationMetric]:
    """Register a function from a ValidationRun to {TensorBoard name: value}, under its own name.

    `higher_is_better` says it of those TensorBoard names that --keep_best may name.
    """

    def register(metric: ValidationMetric) -> ValidationMetric:
        _METRICS[name] = metric
        _HIGHER_IS_BETTER.update(higher_is_better or {})
        return metric

    return register


def import_metrics() -> None:
    """Let every file of this folder register its own."""
    for module in pkgutil.iter_modules(evaluation.__path__):
        importlib.import_module(f"evaluation.{module.name}")


def directions() -> dict[str, bool]:
    """Return {TensorBoard name: whether higher is better} of all by which a checkpoint can be the best."""
    import_metrics()
    return dict(_HIGHER_IS_BETTER)


@torch.no_grad()
def measure_validation(run: ValidationRun) -> dict[str, float]:
    """Return the scalars of all registered metrics; every file of this folder is asked for its own."""
    import_metrics()
    scalars = {}
    for metric in _METRICS.values():
        scalars |= metric(run)
    return scalars


@register_validation_metric("sampled_clips", higher_is_better=DIRECTIONS)
def measure_sampled_clips(run: ValidationRun) -> dict[str, float]:
    """Return each metric that is asked for, as the mean over the clips that give it."""
    if not run.clip_metrics:
        return {}
    sampled = ((clip, run.sample(clip)) for clip in run.others)  # one at a time
    pairs = itertools.chain([(run.shown, run.prediction)], sampled)
    found = [measure_clip(run.clip_metrics, clip, prediction) for clip, prediction in pairs]
    means = {name: mean_of_known(values[name] for values in found) for name in run.clip_metrics}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def measure_clip(names: Sequence[str], clip: dict, prediction: Tensor) -> dict[str, float]:
    """Return {name: mean over the frames} of CLIP_METRICS, NaN for one that the clip does not give.

    clip: as the dataset has it; prediction: float [F, 3, H, W] in [-1, 1], of the clip's size.
    """
    inputs = {"prediction": frames_to_uint8(prediction), "truth": frames_to_uint8(clip["frames"])}
    points = key_points_of(clip)
    if points is not None:
        inputs["key_points"] = points
    values = {}
    for name in names:
        metric = CLIP_METRICS[name]
        is_given = all(part in inputs for part in metric.inputs)
        parts = [inputs[part] for part in metric.inputs] if is_given else []
        values[name] = mean_of_known(metric.function(*parts)) if is_given else math.nan
    return values


def key_points_of(clip: dict) -> np.ndarray | None:
    """Return a clip's key points of the person, float [F, K, 3] in pixels of its frames, or None."""
    height, width = clip["frames"].shape[-2:]
    name = type_of_person({name: condition.shape[1:] for name, condition in clip["guidance"].items()})
    return None if name is None else np.asarray(clip["guidance"][name], np.float64) * (width, height, 1)


def mean_of_known(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN, or NaN where there are none."""
    values = np.asarray([*values], np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
