"""CHAMP's sampling (arXiv:2403.14781) as a diffusers pipeline: image and guidance to a clip of any length.

`output_dir/final` is a saved ChampPipeline. Sampling uses the schedule of training; the original trains on
scaled-linear betas and samples on linear ones, a mismatch that is not kept.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from datasets.transforms import clip_image_transform, reference_transform
from models import ChampModel, GuidanceEncoders, ImageDenoisingUNet, MotionDenoisingUNet
from models.frozen import FrozenEncoders, Generators
from system.errors import ModelError

from .context_windows import WindowGrid, draw_shared_noise, make_grids
from .guided_prediction import Denoiser, GuidanceScales, WindowFeatures, repeat_clips
from .sampling_inputs import Guidance, as_batch, check_generators, check_guidance, check_scales
from .saved_pipeline import AdaptedPipeline
from .schedulers import noise_levels, set_steps

logger = logging.getLogger(__name__)

OUTPUT_TYPES = ("np", "pt", "pil", "latent")
LEAST_KEPT_BYTES, KEPT_SHARE = 16 * 2**20, 4  # the latter: one part in so many of what the weights take


@dataclass
class ChampPipelineOutput(BaseOutput):
    """frames: "np" [B, F, H, W, 3] or "pt" [B, F, 3, H, W] in [0, 1]; "pil" B lists of F images; "latent"
    [B, F, 4, h, w]."""

    frames: np.ndarray | Tensor | list[list[Image.Image]]


@dataclass(frozen=True)
class StepCallback:
    """What is called after each step: function(pipeline, step, timestep, {name: tensor}) -> {name: what
    replaces it}."""

    function: Callable[["ChampPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None
    names: Sequence[str]


@dataclass(frozen=True)
class Steps:
    """How the sampling steps are taken."""

    grids: list[WindowGrid]  # in turn
    scales: GuidanceScales
    callback: StepCallback
    generator: Generators  # for the schedulers that add noise


class ChampPipeline(AdaptedPipeline):
    """Clips of a person in one image, moving as the guidance says.

    The settings after the scheduler are those of training, saved as the defaults of sampling: pixels of a
    frame, frames of a clip, frames per second of the videos, how many of their frames make a step, how images
    are fitted ("crop" or "pad"), and the recipes of the music features and of the poses where the data record
    them.
    """

    # The guidance encoders are not in it: long clips call them in every step, and once moved they stay.
    model_cpu_offload_seq = "image_encoder->reference_unet->unet->vae"
    _callback_tensor_inputs = ["latents"]
    _guidance_scale, _num_timesteps, _interrupt = 1.0, 0, False

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        image_encoder: CLIPVisionModelWithProjection,
        unet: MotionDenoisingUNet | ImageDenoisingUNet,
        reference_unet: UNet2DConditionModel,
        guidance_encoders: GuidanceEncoders,
        scheduler: SchedulerMixin,
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

    def set_attention_slice(self, slice_size: int | str | None) -> None:
        """Leave attention whole, for `enable_attention_slicing` too: its slices know no reference."""
        if slice_size is not None:
            logger.warning("attention is not sliced: PyTorch's own takes no memory that slices would save")

    def enable_vae_slicing(self) -> None:
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        self.vae.disable_tiling()

    @property
    def kept_feature_bytes(self) -> int:
        """Return how much memory a call keeps features of guidance in: a part of what the weights take."""
        return max(LEAST_KEPT_BYTES, sum(weights.nbytes for weights in self.model.parameters()) // KEPT_SHARE)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Return whether the steps that remain are left out: a callback sets `pipeline._interrupt`."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self, reference_image: Tensor | Image.Image | Sequence, guidance: Guidance | Sequence[Guidance], *,
        height: int | None = None, width: int | None = None, num_inference_steps: int = 25,
        guidance_scale: float = 3.5, guidance_scales: dict[str, float] | None = None,
        guidance_interval: tuple[float, float] | None = None, num_videos_per_prompt: int = 1,
        generator: Generators = None, latents: Tensor | None = None, shared_noise: bool = False,
        context_frames: int | None = None, context_overlap: int | None = None, window_grids: int = 1,
        output_type: str = "np", return_dict: bool = True, callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ChampPipelineOutput | tuple:  # fmt: skip
        """Return B clips of as many frames as the guidance has, num_videos_per_prompt of each side by side.

        reference_image, guidance: one image (or [3, H, W] in [-1, 1]) with {type: [F, ...]} as in a training
        batch, any types of it; or B of both, as lists or as [B, 3, H, W] with {type: [B, F, ...]}.
        height, width: the trained ones unless given, else the reference tensor's.
        guidance_scale: 1 does without the unconditional half, twice as fast.
        guidance_scales: {type: how far to go from what the model says without it}, a call more for each.
        guidance_interval: noise levels (low, high) as of `noise_levels`; steps outside have no guidance.
        latents: the noise to start from, [B, F, 4, h, w]; shared_noise: see `draw_shared_noise`.
        context_frames: frames that are denoised together, the trained number unless given.
        context_overlap: frames that neighbouring windows share at least, a quarter unless given.
        window_grids: 1, or 2 for another grid of windows in every second step.
        """
        names = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        callback = StepCallback(callback_on_step_end, names)
        self._check_choices(output_type, window_grids, callback)
        size = self._frame_size(reference_image, height, width)
        reference_image, guidance = as_batch(reference_image, guidance)
        images = self._prepare_reference(reference_image, size)
        num_frames = check_guidance(guidance, len(images), self.guidance_encoders.guidance_types)
        scales = GuidanceScales(guidance_scale, check_scales(guidance_scales, guidance), guidance_interval)
        grids = self.grids(num_frames, context_frames, context_overlap, window_grids)
        denoiser = self._encode(images, guidance, tuple(scales.types), num_videos_per_prompt)

        set_steps(self.scheduler, num_inference_steps, images.device)
        shape = self._latent_shape(len(images) * num_videos_per_prompt, num_frames, size)
        if latents is None:
            latents = self._draw_latents(shape, generator, grids[0] if shared_noise else None)
        elif latents.shape != shape or shared_noise:
            raise ModelError(f"latents {list(latents.shape)}: expected {list(shape)}, and no shared_noise")
        latents = self._denoise(latents, denoiser, Steps(grids, scales, callback, generator))
        frames = self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ChampPipelineOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    def decode_parts(self, latents: Tensor, frames_at_a_time: int = 16) -> Iterator[np.ndarray]:
        """Yield the frames of one clip's latents [F, 4, h, w] (or [1, F, 4, h, w]), uint8 [n, H, W, 3].

        Parts are as many frames as the autoencoder takes at once, or the multiple of it that frames_at_a_time
        has room for; so the frames are those of decoding all of them together, bit for bit.
        """
        clip = latents if latents.ndim == 5 else latents[None]
        if clip.ndim != 5 or len(clip) != 1:
            raise ModelError(f"latents {list(latents.shape)}: expected those of one clip, [F, 4, h, w]")
        at_once = self.frozen.images_at_once(self._execution_device, clip.shape[-2:])
        for part in clip.split(max(1, frames_at_a_time // at_once) * at_once, dim=1):
            yield to_uint8(self._decode(part.to(self._execution_device), "np")[0])
        self.maybe_free_model_hooks()

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

    def grids(
        self, num_frames: int, context_frames: int | None, context_overlap: int | None, window_grids: int = 1
    ) -> list[WindowGrid]:
        """Return the grids of windows that the steps take in turn: single frames without motion modules."""
        return make_grids(num_frames, *self._window_size(context_frames, context_overlap), window_grids)

    def _window_size(self, context_frames: int | None, context_overlap: int | None) -> tuple[int, int]:
        """Return (frames, overlap) of windows. Raises ModelError for what the model cannot take."""
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
        return context_frames, context_overlap

    def _check_choices(self, output_type: str, window_grids: int, callback: StepCallback) -> None:
        """Raise ModelError for choices that there are not."""
        if output_type not in OUTPUT_TYPES:
            raise ModelError(f"output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        if window_grids not in (1, 2):
            raise ModelError(f"window_grids {window_grids}: choose 1 or 2")
        unknown = [name for name in callback.names if name not in self._callback_tensor_inputs]
        if unknown:
            known = ", ".join(self._callback_tensor_inputs)
            raise ModelError(f"callback_on_step_end_tensor_inputs {unknown[0]!r}: choose of {known}")

    def _prepare_reference(self, images: Tensor | Sequence, size: tuple[int, int]) -> Tensor:
        """Return references [B, 3, H, W] in [-1, 1]."""
        if not isinstance(images, Tensor):
            fit = self.config.fit
            images = [
                one if isinstance(one, Tensor) else reference_transform(one, size, fit=fit) for one in images
            ]
            images = torch.stack(images)
        if images.shape[1:] != (3, *size):
            found = list(images.shape)
            raise ModelError(f"reference_image {found}: expected [B, 3, {size[0]}, {size[1]}]")
        return images.to(self._execution_device)

    def _encode(
        self, images: Tensor, guidance: Guidance, left_out: tuple[str, ...], repeats: int
    ) -> Denoiser:
        """Return what the steps share: the reference, encoded once, and the guidance of each window."""
        clip_images = torch.stack([clip_image_transform(image) for image in images]).to(images.device)
        image_tokens = self.frozen.encode_image_tokens(clip_images).to(self.unet.dtype)
        reference_latents = self.frozen.encode_reference(images).to(self.reference_unet.dtype)
        bank = self.model.encode_reference(reference_latents, image_tokens.to(self.reference_unet.dtype))
        if self.reference_unet.dtype != self.unet.dtype:
            bank = {name: tokens.to(self.unet.dtype) for name, tokens in bank.items()}
        bank = {name: repeat_clips(tokens, repeats) for name, tokens in bank.items()}
        features = WindowFeatures(
            self.model, guidance, tuple(reference_latents.shape[-2:]), images.device,
            left_out, repeats, self.kept_feature_bytes,
        )  # fmt: skip
        return Denoiser(
            self.model, self.model.project_reference(bank), repeat_clips(image_tokens, repeats), features
        )

    def _latent_shape(self, num_videos: int, num_frames: int, size: tuple[int, int]) -> tuple[int, ...]:
        factor = self.frozen.latent_factor
        return (num_videos, num_frames, self.unet.config.in_channels, size[0] // factor, size[1] // factor)

    def _draw_latents(self, shape: tuple[int, ...], generator: Generators, grid: WindowGrid | None) -> Tensor:
        """Return noise [B, F, 4, h, w], with a grid shared between its windows."""
        check_generators(generator, shape[0])
        device = self._execution_device
        if grid is None:
            return randn_tensor(shape, generator, device)
        return draw_shared_noise(shape, grid, generator, device)

    def _denoise(self, latents: Tensor, denoiser: Denoiser, steps: Steps) -> Tensor:
        """Return the latents that the scheduler's steps make of noise, float32 [B, F, 4, h, w]."""
        scheduler, timesteps = self.scheduler, self.scheduler.timesteps
        has_interval = steps.scales.interval is not None
        levels = noise_levels(scheduler).tolist() if has_interval else [0.0] * len(timesteps)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": steps.generator} if takes_generator else {}
        latents = latents.to(timesteps.device, torch.float32) * scheduler.init_noise_sigma
        self._num_timesteps, self._interrupt = len(timesteps), False
        self._guidance_scale = steps.scales.reference
        for step, timestep in enumerate(self.progress_bar(timesteps)):
            if self._interrupt:
                continue
            grid = steps.grids[step % len(steps.grids)]
            scales = steps.scales.at(self._guidance_scale, levels[step])
            noisy = scheduler.scale_model_input(latents, timestep)
            prediction = denoiser.predict(noisy, timestep, grid, scales)
            latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
            if steps.callback.function is not None:
                given = {name: latents for name in steps.callback.names}
                latents = steps.callback.function(self, step, timestep, given).pop("latents", latents)
        return latents

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
        return [[Image.fromarray(frame) for frame in clip] for clip in to_uint8(frames)]


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Return levels 0..255 of frames in [0, 1]."""
    return (255 * frames).round().astype(np.uint8)
