"""The demo's model as the sampling benchmark asks it: a clip, a setting, what it cost."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.sample.parts import ForwardCounter
from benchmarks.sample.settings import Setting
from datasets.transforms import reference_transform
from evaluation.clips.truth import Truth
from evaluation.confidence import bootstrap_interval
from evaluation.sampling import Sampler, SamplingSettings
from pipelines.loading import load_pipeline


@dataclass(frozen=True)
class Sampled:
    frames: np.ndarray  # uint8 [F, H, W, 3]
    forwards: int  # of the UNet: one half of one window each
    cpu_seconds: float


class DemoModel:
    """A trained pipeline, sampled with the noise of the seed that is the clip's place in its folder."""

    def __init__(self, model_path: Path) -> None:
        self.path, self.pipeline = model_path, load_pipeline(model_path)
        self.trained = self.pipeline.scheduler
        self.counter = ForwardCounter(self.pipeline.unet, frames_axis=1)

    def reference(self, clip: Truth) -> torch.Tensor:
        return reference_transform(clip.reference, clip.size, self.pipeline.config.fit)

    def sample(self, clip: Truth, setting: Setting) -> Sampled:
        """Return the clip as the pipeline samples it, with its own guidance."""
        settings = SamplingSettings(seed=0, scheduler=setting.scheduler, **setting.keywords)
        sampler = Sampler(self.pipeline, settings, self.path)
        self.counter.restart()
        started = time.process_time()
        frames = sampler.sample(clip)
        return Sampled(frames, self.counter.forwards, time.process_time() - started)


def mean_of(values: list[float]) -> dict[str, float | None]:
    """Return the mean over clips and its 95 % interval, None where there are fewer than two."""
    return interval_of(float(np.nanmean(values)), *bootstrap_interval(values))


def interval_of(mean: float, low: float, high: float) -> dict[str, float | None]:
    values = {"mean": mean, "low": low, "high": high}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def interval_text(found: dict[str, float | None], form: str = ".3f") -> str:
    """Return "mean (low to high)" of what the two functions above return."""
    mean, low, high = ("-" if value is None else f"{value:{form}}" for value in found.values())
    return f"{mean} ({low} to {high})"
