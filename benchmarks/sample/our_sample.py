"""One process of the sampling benchmark: a sample of our pipeline, timed, or its bare networks.

Started by sampling.py. "Bare" is what the steps and windows of the same sample require and no more: the
reference, the image token and the guidance of all frames encoded once, a forward of each half of each window
in each step, all frames decoded once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import system.waiting  # noqa: E402  (before torch is loaded)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import DDIMScheduler  # noqa: E402

from benchmarks.sample.parts import PARTS, ForwardCounter  # noqa: E402
from benchmarks.sample.plain import PlainSampler  # noqa: E402
from benchmarks.sample.settings import Setting, setting  # noqa: E402
from benchmarks.step.clock import MemoryPeak, StepClock, measure_steps  # noqa: E402
from benchmarks.step.our_networks import make_champ, make_frozen  # noqa: E402
from benchmarks.step.sizes import GUIDANCE_TYPES, SIZES, Size  # noqa: E402
from datasets.transforms import to_signed  # noqa: E402
from pipelines.champ_pipeline import ChampPipeline  # noqa: E402
from pipelines.schedulers import make_scheduler, set_steps  # noqa: E402

TRAINED = {  # the schedule of our default training, and of the original's
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction",
    "steps_offset": 1,
}  # fmt: skip


def make_pipeline(size: Size, device: torch.device) -> ChampPipeline:
    """Return a pipeline over random weights."""
    model = make_champ(size, device, has_motion_modules=True).requires_grad_(False).eval()
    pipeline = ChampPipeline.from_parts(
        model, make_frozen(size, device, torch.float32), DDIMScheduler(**TRAINED),
        height=size.resolution, width=size.resolution,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Maps:
    """Guidance images uint8 [F, H, W, 3] as the conditions of a clip, when they are asked for.

    The original is given images, too, and makes its tensors of them.
    """

    def __init__(self, images: np.ndarray):
        self.images = images

    @property
    def shape(self) -> tuple[int, ...]:
        num_frames, height, width, channels = self.images.shape
        return num_frames, channels, height, width

    def __getitem__(self, frames: slice) -> torch.Tensor:
        return to_signed(self.images[frames]).add_(1).div_(2)  # [n, 3, H, W] in [0, 1]


class OurSampler:
    """The pipeline and its inputs. num_frames is asked for, so that a warm-up can take fewer."""

    def __init__(self, spec: dict):
        self.spec, self.device = spec, torch.device("cpu")
        self.clock, self.memory = StepClock(self.device, PARTS), MemoryPeak(self.device)
        torch.manual_seed(42)
        self.pipeline = make_pipeline(SIZES[spec["size"]], self.device)
        self.setting: Setting = setting(spec["setting"])
        self.pipeline.scheduler = make_scheduler(self.setting.scheduler, self.pipeline.scheduler)
        with np.load(spec["inputs"]) as images:
            self.reference = to_signed(images["reference"][None])[0].to(self.device)  # [3, H, W]
            self.maps = {name: images[name] for name in GUIDANCE_TYPES}
        self.counter = ForwardCounter(self.pipeline.unet, frames_axis=1)
        self._watch()

    def _watch(self) -> None:
        clock, vae, pipeline = self.clock, self.pipeline.vae, self.pipeline
        vae.encode = clock.watched(vae.encode, "vae_encode")
        vae.decode = clock.watched(vae.decode, "vae_decode")
        clock.watch(pipeline.image_encoder, "image_encoder")
        clock.watch(pipeline.reference_unet, "reference")
        clock.watch(pipeline.guidance_encoders, "guidance_encoders")
        clock.watch(pipeline.unet, "denoiser")

    def sample(self, num_frames: int) -> float:
        """Sample with the pipeline; return the frames' mean."""
        guidance = {name: Maps(images[:num_frames]) for name, images in self.maps.items()}
        frames = self.pipeline(
            self.reference, guidance, generator=torch.Generator().manual_seed(42),
            context_frames=self.spec["context_frames"], context_overlap=self.spec["context_overlap"],
            **self.setting.keywords,
        ).frames  # fmt: skip
        return float(frames.mean())

    def run_networks(self, num_frames: int) -> float:
        """Call the networks as often as `sample` has to; return the frames' mean."""
        pipeline, spec = self.pipeline, self.spec
        plain = PlainSampler(pipeline.model, pipeline.frozen)
        encoded = plain.encode(
            self.reference, {name: Maps(images)[:num_frames] for name, images in self.maps.items()}
        )
        [grid] = pipeline.grids(num_frames, spec["context_frames"], spec["context_overlap"])
        latents = torch.randn(1, num_frames, 4, *encoded.features.spatial.shape[-2:], device=self.device)
        set_steps(pipeline.scheduler, self.setting.num_inference_steps, self.device)
        for timestep in pipeline.scheduler.timesteps:
            for window in grid.windows:
                plain.halves(latents, timestep, encoded, torch.arange(num_frames)[window])
        return float(pipeline.frozen.decode_frames(latents).mean())


def measure(spec: dict) -> dict:
    """Run the sample of a spec; return its row of the results."""
    sampler = OurSampler(spec)
    sample = sampler.run_networks if spec["who"] == "bare" else sampler.sample
    sample(2)  # what comes with a process's first call belongs to neither
    sampler.counter.restart()
    row = measure_steps(lambda: sample(spec["num_frames"]), sampler.clock, sampler.memory, spec)
    return row | sampler.counter.summary(row)


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(measure(spec)), encoding="utf-8")
