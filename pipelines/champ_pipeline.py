"""CHAMP's sampling (arXiv:2403.14781) as a diffusers pipeline: image and guidance to a clip of any length.

`output_dir/final` is a saved ChampPipeline. Sampling uses the schedule of training; the original trains on
scaled-linear betas and samples on linear ones, a mismatch that is not kept.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from datasets.transforms import clip_image_transform, reference_transform
from models import ChampModel, GuidanceEncoders, GuidanceFeatures, ImageDenoisingUNet, MotionDenoisingUNet
from models.frozen import FrozenEncoders
from models.guidance_encoder import PoseGuidanceEncoder
from system.errors import ModelError

from .context_windows import context_windows, frame_weights
from .saved_pipeline import SavedPipeline

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


@dataclass
class ChampPipelineOutput(BaseOutput):
    """frames: "np" [B, F, H, W, 3] or "pt" [B, F, 3, H, W] in [0, 1]; "pil" B lists of F images; "latent"
    [B, F, 4, h, w]."""

    frames: np.ndarray | Tensor | list[list[Image.Image]]


@dataclass
class Conditions:
    """All that stays the same over the sampling steps of B clips."""

    bank: dict[str, Tensor]  # {processor name: [B, L, C]}
    image_tokens: Tensor  # [B, L, D]
    windows: list[slice]  # of frames
    features: list[GuidanceFeatures]  # one per window
    context_overlap: int


class ChampPipeline(SavedPipeline):
    """Clips of a person in one image, moving as the guidance says.

    The settings after the scheduler are those of training, saved as the defaults of sampling: pixels of a
    frame, frames of a clip, frames per second of the videos, how many of their frames make a step, how images
    are fitted ("crop" or "pad"), and the recipes of the music features and of the poses where the data record
    them.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        image_encoder: CLIPVisionModelWithProjection,
        unet: MotionDenoisingUNet | ImageDenoisingUNet,
        reference_unet: UNet2DConditionModel,
        guidance_encoders: GuidanceEncoders,
        scheduler: DDIMScheduler,
        height: int | None = None,
        width: int | None = None,
        sequence_length: int | None = None,
        frame_rate: float | None = None,
        frame_stride: int = 1,
        fit: str = "auto",
        music_recipe: str | None = None,
        pose_recipe: str | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, image_encoder=image_encoder, unet=unet, reference_unet=reference_unet,
            guidance_encoders=guidance_encoders, scheduler=scheduler,
        )  # fmt: skip
        self.register_to_config(
            height=height, width=width, sequence_length=sequence_length, frame_rate=frame_rate,
            frame_stride=frame_stride, fit=fit, music_recipe=music_recipe, pose_recipe=pose_recipe,
        )  # fmt: skip

    @classmethod
    def from_parts(
        cls, model: ChampModel, frozen: FrozenEncoders, scheduler: DDIMScheduler, **training_settings
    ) -> "ChampPipeline":
        """Return a pipeline over the very modules of a training run, with a scheduler of its own.

        training_settings: the constructor's arguments after the scheduler.
        """
        pipeline = cls(
            frozen.vae, frozen.image_encoder, model.unet, model.reference_unet, model.guidance_encoders,
            DDIMScheduler.from_config(scheduler.config), **training_settings,
        )  # fmt: skip
        pipeline.model, pipeline.frozen = model, frozen
        return pipeline

    @functools.cached_property
    def model(self) -> ChampModel:  # made when asked for: it sets the attention processors of its UNets
        return ChampModel(self.unet, self.reference_unet, self.guidance_encoders)

    @functools.cached_property
    def frozen(self) -> FrozenEncoders:
        return FrozenEncoders(self.vae, self.image_encoder)

    def enable_xformers_memory_efficient_attention(self, attention_op=None) -> None:
        """Let xformers compute attention in our processors; diffusers' own would lose reference attention."""
        if attention_op is not None:
            raise ModelError("attention_op: CHAMP's attention takes xformers' own choice; leave it out")
        self.model.set_attention_backend("xformers")

    def disable_xformers_memory_efficient_attention(self) -> None:
        self.model.set_attention_backend("sdpa")

    @torch.no_grad()
    def __call__(
        self,
        reference_image: Tensor | Image.Image | Sequence[Image.Image],
        guidance: dict[str, Tensor],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        context_frames: int | None = None,
        context_overlap: int | None = None,
        output_type: str = "np",
    ) -> ChampPipelineOutput:
        """Return B clips of as many frames as the guidance has.

        reference_image and guidance: one image (or [3, H, W] in [-1, 1]) with {type: [F, ...]}, or B
        images (or [B, 3, H, W]) with {type: [B, F, ...]}; guidance as in a training batch, any types of it.
        height, width: the trained ones unless given, else the reference tensor's.
        guidance_scale: 1 does without the unconditional half, twice as fast.
        latents: the noise to start from, [B, F, 4, h, w].
        context_frames: frames that are denoised together, the trained number unless given.
        context_overlap: frames that neighbouring windows share at least, a quarter unless given.
        """
        if output_type not in OUTPUT_TYPES:
            raise ModelError(f"output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        size = self._frame_size(reference_image, height, width)
        reference_image, guidance = _as_batch(reference_image, guidance)
        images = self._prepare_reference(reference_image, size)
        guidance = self._prepare_guidance(guidance, len(images))
        num_frames = next(iter(guidance.values())).shape[1]
        windows, overlap = self.windows(num_frames, context_frames, context_overlap)
        conditions = self._encode_conditions(images, guidance, windows, overlap)

        self.scheduler.set_timesteps(num_inference_steps, device=images.device)
        factor = self.frozen.latent_factor
        shape = (len(images), num_frames, self.unet.config.in_channels, size[0] // factor, size[1] // factor)
        if latents is None:
            latents = randn_tensor(shape, generator, images.device) * self.scheduler.init_noise_sigma
        elif latents.shape != shape:
            raise ModelError(f"latents {list(latents.shape)}: expected {list(shape)}")
        latents = latents.to(images.device, torch.float32)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            prediction = self.predict(latents, timestep, conditions, guidance_scale)
            latents = self.scheduler.step(prediction, timestep, latents).prev_sample
        frames = self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ChampPipelineOutput(frames=frames)

    def predict(
        self, latents: Tensor, timestep: Tensor, conditions: Conditions, guidance_scale: float
    ) -> Tensor:
        """Return the guided prediction, float32 [B, F, 4, h, w], averaged where windows overlap."""
        tokens, timesteps = conditions.image_tokens, timestep.expand(len(latents))
        total = torch.zeros_like(latents)
        weight = torch.zeros(latents.shape[1], device=latents.device)
        for window, features in zip(conditions.windows, conditions.features, strict=True):
            noisy = latents[:, window].to(self.unet.dtype)
            prediction = self.model.denoise(noisy, timesteps, tokens, conditions.bank, features)
            if guidance_scale != 1.0:
                # As the reference dropout in training: a zero image token and no reference; the guidance
                # stays. A call of its own: without a bank attention costs half of what a masked one does.
                unconditional = self.model.denoise(noisy, timesteps, torch.zeros_like(tokens), None, features)
                prediction = unconditional + guidance_scale * (prediction - unconditional)
            weights = frame_weights(window.stop - window.start, conditions.context_overlap).to(latents.device)
            total[:, window] += prediction.float() * weights[:, None, None, None]
            weight[window] += weights
        return total / weight[:, None, None, None]

    def _frame_size(self, reference_image, height: int | None, width: int | None) -> tuple[int, int]:
        """Return (height, width) in pixels. Raises ModelError when it is unknown or does not suit the VAE."""
        height, width = height or self.config.height, width or self.config.width
        if isinstance(reference_image, Tensor):
            height, width = height or reference_image.shape[-2], width or reference_image.shape[-1]
        if height is None or width is None:
            problem = "this model does not say at which resolution it was trained"
            raise ModelError(f"{problem}: give height and width")
        factor = self.frozen.latent_factor
        if height % factor or width % factor:
            raise ModelError(f"frames of {height}x{width}: both sides must be multiples of {factor}")
        return height, width

    def _prepare_reference(self, images: Tensor | Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
        """Return references [B, 3, H, W] in [-1, 1]."""
        if not isinstance(images, Tensor):
            images = torch.stack([reference_transform(image, size, fit=self.config.fit) for image in images])
        if images.shape[1:] != (3, *size):
            found = list(images.shape)
            raise ModelError(f"reference_image {found}: expected [B, 3, {size[0]}, {size[1]}]")
        return images.to(self._execution_device)

    def _prepare_guidance(self, guidance: dict[str, Tensor], num_clips: int) -> dict[str, Tensor]:
        """Return {type: [B, F, ...]} on the device. Raises ModelError for wrong types or lengths."""
        trained = self.guidance_encoders.guidance_types
        if not guidance:
            raise ModelError(f"no guidance: give at least one of the trained types ({', '.join(trained)})")
        unknown = [name for name in guidance if name not in trained]
        if unknown:
            raise ModelError(f"guidance type {unknown[0]!r}: the model was trained with {', '.join(trained)}")
        lengths = {name: tuple(condition.shape[:2]) for name, condition in guidance.items()}
        if len(set(lengths.values())) > 1 or next(iter(lengths.values()))[0] != num_clips:
            found = ", ".join(f"{name} {clips} x {frames}" for name, (clips, frames) in lengths.items())
            expected = "every type needs as many clips as there are references, and one number of frames"
            problem = f"guidance of {found} (clips x frames) for {num_clips} reference images"
            raise ModelError(f"{problem}: {expected}")
        # Key points stay float32: half precision would move them by pixels; their encoder converts by itself.
        encoders, device = self.guidance_encoders.encoders, self._execution_device
        poses = [name for name in guidance if isinstance(encoders[name], PoseGuidanceEncoder)]
        dtypes = dict.fromkeys(guidance, self.guidance_encoders.dtype) | dict.fromkeys(poses, torch.float32)
        return {name: condition.to(device, dtypes[name]) for name, condition in guidance.items()}

    def windows(
        self, num_frames: int, context_frames: int | None, context_overlap: int | None
    ) -> tuple[list[slice], int]:
        """Return (windows, overlap) that cover the clip: single frames without motion modules."""
        limit = self.unet.config.motion_max_seq_length if self.model.has_motion_modules else 1
        if context_frames is None:
            context_frames = min(self.config.sequence_length or limit, limit)
        if not 1 <= context_frames <= limit:
            expected = f"this model takes 1 to {limit} frames at a time"
            raise ModelError(f"context_frames {context_frames}: {expected}")
        if context_overlap is None:
            context_overlap = context_frames // 4
        if not 0 <= context_overlap < context_frames:
            raise ModelError(f"context_overlap {context_overlap}: must be 0 to {context_frames - 1} here")
        return context_windows(num_frames, context_frames, context_overlap), context_overlap

    def _encode_conditions(
        self, images: Tensor, guidance: dict[str, Tensor], windows: list[slice], overlap: int
    ) -> Conditions:
        """Return what the steps share, computed once; guidance window by window, as training sees clips."""
        clip_images = torch.stack([clip_image_transform(image) for image in images]).to(images.device)
        image_tokens = self.frozen.encode_image_tokens(clip_images).to(self.unet.dtype)
        reference_latents = self.frozen.encode_reference(images).to(self.reference_unet.dtype)
        bank = self.model.encode_reference(reference_latents, image_tokens)
        latent_size = tuple(reference_latents.shape[-2:])
        features = [
            self.model.encode_guidance({name: c[:, window] for name, c in guidance.items()}, latent_size)
            for window in windows
        ]
        return Conditions(bank, image_tokens, windows, features, overlap)

    def _decode(self, latents: Tensor, output_type: str):
        """Return decoded latents [B, F, 4, h, w] as ChampPipelineOutput.frames."""
        if output_type == "latent":
            return latents
        frames = self.frozen.decode_frames(latents).float() / 2 + 0.5
        if output_type == "pt":
            return frames
        frames = frames.permute(0, 1, 3, 4, 2).cpu().numpy()
        if output_type == "np":
            return frames
        frames = (255 * frames).round().astype(np.uint8)
        return [[Image.fromarray(frame) for frame in clip] for clip in frames]


def _as_batch(reference_image, guidance: dict[str, Tensor]):
    """Return (references, guidance) with a batch axis, which one image and its guidance come without."""
    if isinstance(reference_image, Tensor) and reference_image.ndim == 3:
        reference_image = reference_image[None]
    elif isinstance(reference_image, Image.Image):
        reference_image = [reference_image]
    else:
        return reference_image, guidance
    return reference_image, {name: condition[None] for name, condition in guidance.items()}
