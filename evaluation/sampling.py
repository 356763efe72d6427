"""Predictions of a trained model: each clip of the truth sampled from its reference image and guidance."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets import collate_clips
from datasets.transforms import clip_image_transform, reference_transform, to_signed
from models import FrozenEncoders
from pipelines.champ_pipeline import ChampPipeline
from pipelines.context_windows import context_windows
from pipelines.flags import sampling_keywords
from pipelines.loading import autocast
from pipelines.schedulers import SCHEDULERS, scheduled

from .clips.truth import Truth
from .guidance_gaps import ClipLosses, GapProtocol, Objective, clip_losses, encode_clip


@dataclass(frozen=True)
class SamplingSettings:
    """As sample_guidance.py's flags. A clip's noise is drawn from the seed plus its place in the folder."""

    num_inference_steps: int = 25
    guidance_scale: float = 3.5
    seed: int = 42
    context_frames: int | None = None
    context_overlap: int | None = None
    mixed_precision: str = "no"
    _: dataclasses.KW_ONLY
    scheduler: str = SCHEDULERS[0]
    guidance_scales: list[tuple[str, float]] = field(default_factory=list)  # (guidance type, scale)
    guidance_interval: Sequence[float] | None = None  # noise levels (low, high)
    window_grids: int = 1
    shared_noise: bool = False
    lora: list[str] = field(default_factory=list)  # paths of the adapters that the pipeline has
    lora_scale: list[float] = field(default_factory=lambda: [1.0])

    @property
    def protocol(self) -> dict:
        """Return all that decides a sample; of the later settings, those that are not as by default.

        So evaluations from before they were there count as the same.
        """
        usual, later = SamplingSettings(), {one.name for one in dataclasses.fields(self) if one.kw_only}
        return {
            name: value for name, value in dataclasses.asdict(self).items()
            if name not in later or value != getattr(usual, name)
        }  # fmt: skip


class Sampler:
    """A model that makes predictions. path: the folder that it was loaded from."""

    def __init__(self, pipeline: ChampPipeline, settings: SamplingSettings, path: Path) -> None:
        self.pipeline, self.settings, self.path = pipeline, settings, path
        pipeline.set_progress_bar_config(disable=True)

    @property
    def guidance_types(self) -> list[str]:
        return list(self.pipeline.guidance_encoders.guidance_types)

    def sample(self, truth: Truth, guidance: dict[str, Tensor] | None = None) -> np.ndarray:
        """Return the prediction of a clip, uint8 [F, H, W, 3]; guidance: instead of the clip's own.

        Raises DataError where the clip lacks its reference image or a trained type of guidance.
        """
        self.check(truth)
        (height, width), settings = truth.size, self.settings
        guidance = truth.guidance if guidance is None else guidance
        reference = reference_transform(truth.reference, truth.size, self.pipeline.config.fit)
        generator = torch.Generator().manual_seed(settings.seed + truth.place)
        precision = autocast(self.pipeline.device, settings.mixed_precision)
        with precision, scheduled(self.pipeline, settings.scheduler):
            frames = self.pipeline(
                reference, guidance, height=height, width=width, generator=generator,
                **sampling_keywords(settings),
            ).frames[0]  # fmt: skip
        return np.round(255 * frames).astype(np.uint8)

    def check(self, truth: Truth) -> None:
        """Raise DataError where a clip lacks its reference image or a trained type of guidance."""
        for name in ("reference_image", *self.guidance_types):
            if name in truth.lacks:
                raise truth.fault(name, "")

    def losses(
        self, clips: Iterable[Truth], objective: Objective, most_frames: int | None = None,
        on_clip: Callable[[], object] = lambda: None,
    ) -> list[ClipLosses]:  # fmt: skip
        """Return the losses of each clip, with its own guidance and the next one's; see guidance_gaps.

        Of as many first frames as in training, `most_frames` at most: all clips must have as many. on_clip is
        called after each of them.
        """
        trained = self.pipeline.config.sequence_length or 1
        num_frames = min(trained, most_frames or trained)
        device, encoded = self.pipeline.device, []
        for truth in clips:
            self.check(truth)
            encoded.append(encode_clip(self.pipeline.frozen, self.batch_of(truth, num_frames), device))
        return clip_losses(self.pipeline.model, objective, encoded, GapProtocol(), on_clip)

    def batch_of(self, truth: Truth, num_frames: int) -> dict:
        """Return the first frames of a clip as a training batch of one clip."""
        frames = np.stack(list(itertools.islice(truth.source()(), num_frames)))
        reference = reference_transform(truth.reference, truth.size, self.pipeline.config.fit)
        return collate_clips([{
            "frames": to_signed(frames),
            "guidance": {name: values[:num_frames] for name, values in truth.guidance.items()},
            "reference_image": reference,
            "clip_image": clip_image_transform(reference),
            "sample_id": truth.sample_id,
        }])  # fmt: skip

    def borders(self, num_frames: int) -> list[int]:
        """Return the frames at which a window of the last step begins, but for the first."""
        settings = self.settings
        size = settings.context_frames, settings.context_overlap
        grids = self.pipeline.grids(num_frames, *size, settings.window_grids)
        grid = grids[(settings.num_inference_steps - 1) % len(grids)]
        return [window.start for window in grid.windows[1:]]


def stated_borders(
    num_frames: int, context_frames: int | None, context_overlap: int | None
) -> list[int] | None:
    """Return the frames at which windows of another's sampler begin, None where they are not stated."""
    if context_frames is None:
        return None
    overlap = context_frames // 4 if context_overlap is None else context_overlap
    return [window.start for window in context_windows(num_frames, context_frames, overlap)[1:]]


class RoundTrip:
    """Frames through a VAE and back. Sides that are no multiples of its factor are padded, then cut."""

    def __init__(self, vae: nn.Module) -> None:
        self.frozen = FrozenEncoders(vae, nn.Identity())

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Return uint8 [n, H, W, 3] of the same."""
        height, width = frames.shape[1:3]
        factor, vae = self.frozen.latent_factor, self.frozen.vae
        padding = ((0, 0), (0, -height % factor), (0, -width % factor), (0, 0))
        pixels = torch.from_numpy(np.pad(frames, padding, mode="edge")).permute(0, 3, 1, 2)
        images = pixels.to(vae.device, torch.float32) / 127.5 - 1
        decoded = self.frozen.decode_frames(self.frozen.encode_reference(images)[None])[0]
        levels = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        return levels.permute(0, 2, 3, 1).numpy()[:, :height, :width]
