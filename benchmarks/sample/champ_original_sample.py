"""One process of the sampling benchmark: a sample of the original CHAMP's pipeline, from the user's checkout.

Started by sampling.py with the original's interpreter. The pipeline is its own, called as its inference.py
does. Differences: random weights, float32 as on our side; the reference bank is kept in that precision, not
always in half.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "step"))

from champ_original_networks import make_frozen, make_networks  # noqa: E402
from clock import MemoryPeak, StepClock, measure_steps  # noqa: E402
from diffusers import DDIMScheduler  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from parts import PARTS, ForwardCounter  # noqa: E402
from sizes import GUIDANCE_TYPES, SIZES  # noqa: E402


class OriginalSampler:
    """The original's pipeline and its inputs."""

    def __init__(self, spec: dict):
        sys.path.insert(0, spec["champ_repo"])
        self.spec, self.device = spec, torch.device("cpu")
        self.clock, self.memory = StepClock(self.device, PARTS), MemoryPeak(self.device)
        torch.manual_seed(42)
        self.pipeline = self._make_pipeline()
        with np.load(spec["inputs"]) as images:
            self.reference = Image.fromarray(images["reference"])
            self.guidance = {name: [*map(Image.fromarray, images[name])] for name in GUIDANCE_TYPES}
        self.counter = ForwardCounter(self.pipeline.denoising_unet, frames_axis=2)
        self._watch()

    def _make_pipeline(self):
        from models.mutual_self_attention import ReferenceAttentionControl
        from pipelines.pipeline_aggregation import MultiGuidance2LongVideoPipeline

        ReferenceAttentionControl.update.__defaults__ = (torch.float32,)
        size = SIZES[self.spec["size"]]
        config = OmegaConf.load(Path(self.spec["champ_repo"]) / "configs" / "inference" / "inference.yaml")
        scheduler = DDIMScheduler(
            **OmegaConf.to_container(config.noise_scheduler_kwargs), rescale_betas_zero_snr=True,
            timestep_spacing="trailing", prediction_type="v_prediction",
        )  # fmt: skip
        with self.device:
            vae, image_encoder = make_frozen(size, torch.float32)
            reference_unet, denoising_unet, encoders = make_networks(
                size, OmegaConf.to_container(config.unet_additional_kwargs)
            )
        for part in (reference_unet, denoising_unet, *encoders.values()):
            part.requires_grad_(False).eval()
        pipeline = MultiGuidance2LongVideoPipeline(
            vae=vae, image_encoder=image_encoder, reference_unet=reference_unet,
            denoising_unet=denoising_unet, scheduler=scheduler,
            **{f"guidance_encoder_{name}": encoder for name, encoder in encoders.items()},
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _watch(self) -> None:
        clock, pipeline = self.clock, self.pipeline
        pipeline.vae.encode = clock.watched(pipeline.vae.encode, "vae_encode")
        pipeline.vae.decode = clock.watched(pipeline.vae.decode, "vae_decode")
        clock.watch(pipeline.image_encoder, "image_encoder")
        clock.watch(pipeline.reference_unet, "reference")
        for name in GUIDANCE_TYPES:
            clock.watch(getattr(pipeline, f"guidance_encoder_{name}"), "guidance_encoders")
        clock.watch(pipeline.denoising_unet, "denoiser")

    def sample(self, num_frames: int) -> float:
        """Sample with the pipeline; return the frames' mean."""
        side, spec = SIZES[self.spec["size"]].resolution, self.spec
        _, steps, *_ = spec["setting"].split(":")  # of ddim
        videos = self.pipeline(
            self.reference, {name: images[:num_frames] for name, images in self.guidance.items()}, side, side,
            num_frames, num_inference_steps=int(steps), guidance_scale=spec["guidance_scale"],
            generator=torch.Generator().manual_seed(42),
            context_frames=spec["context_frames"], context_overlap=spec["context_overlap"],
        ).videos  # fmt: skip
        return float(videos.mean())


def measure(spec: dict) -> dict:
    """Run the sample of a spec; return its row of the results."""
    sampler = OriginalSampler(spec)
    sampler.sample(2)  # what comes with a process's first call is not counted, as with ours
    sampler.counter.restart()
    row = measure_steps(lambda: sampler.sample(spec["num_frames"]), sampler.clock, sampler.memory, spec)
    return row | sampler.counter.summary(row)


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(measure(spec)), encoding="utf-8")
