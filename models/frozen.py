"""The networks that are never trained: the autoencoder (VAE) and the CLIP image encoder."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from system.errors import ModelError

from .chunks import CPU_PIXELS, images_at_once
from .model_files import load_component, local_component

logger = logging.getLogger(__name__)

Generators = torch.Generator | list[torch.Generator] | None  # a list: one per clip

# Stable Diffusion 1.5 comes without an image encoder; this is CHAMP's: CLIP ViT-L/14 with its 768-wide
# projection.
DEFAULT_IMAGE_ENCODER = "lambdalabs/sd-image-variations-diffusers"

_FALSE_ALARM = re.compile(
    r"\{'block_out_channels': [\[(][\d, ]*[\])]\} were passed to AutoencoderTiny,|LOAD REPORT"
)

MOST_IMAGES = 8  # at once through the autoencoder, on a GPU too: each takes much memory


class FrozenEncoders(nn.Module):
    """Images to latents and back, and images to image tokens. Nothing here has a gradient."""

    cpu_pixels = CPU_PIXELS  # of the images encoded or decoded at once

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, image_encoder: CLIPVisionModelWithProjection):
        super().__init__()
        self.vae = vae
        self.image_encoder = image_encoder
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        vae_model_name_or_path: str | Path | None = None,
        image_encoder_name_or_path: str | Path | None = None,
        revision: str | None = None,
        variant: str | None = None,
    ) -> "FrozenEncoders":
        """Return the `vae` and `image_encoder` folders of a Stable Diffusion folder or hub id, in float32.

        The two other paths may be such a folder or id too, or the component's own.
        """
        base = str(pretrained_model_name_or_path)
        vae = _load("vae", vae_model_name_or_path or base, base, revision, variant)
        image_encoder_source = image_encoder_name_or_path or _find_image_encoder(base)
        return cls(vae, _load("image_encoder", image_encoder_source, base, revision, variant))

    @contextmanager
    def on(self, device: torch.device | str) -> Iterator["FrozenEncoders"]:
        """Keep them on a device inside the block: a GPU's memory is for what is in use."""
        before = self.vae.device
        try:
            yield self.to(device)
        finally:
            self.to(before)

    def train(self, mode: bool = True) -> "FrozenEncoders":
        return super().train(False)  # frozen means evaluation mode, whatever a parent module is told

    @property
    def latent_factor(self) -> int:
        """Return the pixels per latent, along each side."""
        config = self.vae.config
        widths = config.encoder_block_out_channels if self._is_tiny else config.block_out_channels
        return 2 ** (len(widths) - 1)

    @property
    def num_moments(self) -> int:
        """Return 2 where latents are sampled from mean and deviation, else 1."""
        return 1 if self._is_tiny else 2

    @property
    def image_token_width(self) -> int:
        return self.image_encoder.config.projection_dim

    @property
    def _is_tiny(self) -> bool:
        return isinstance(self.vae, AutoencoderTiny)

    @torch.no_grad()
    def encode_frames(
        self, frames: Tensor, generator: Generators = None, chunk_size: int | None = None
    ) -> Tensor:
        """Return scaled latents [B, F, 4, h, w], sampled, of frames [B, F, 3, H, W] in [-1, 1].

        With a list of B generators a clip's latents do not depend on the others of its batch.
        """
        return self.sample_latents(*self.encode_moments(frames, chunk_size), generator)

    @torch.no_grad()
    def encode_moments(self, frames: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Return mean and deviation [B, F, 4, h, w] of the latents of frames [B, F, 3, H, W] in [-1, 1].

        They are not scaled. The deviation is None where the autoencoder has none (AutoencoderTiny).
        """
        moments = self._moments(frames.flatten(0, 1), chunk_size)
        return tuple(part if part is None else part.unflatten(0, frames.shape[:2]) for part in moments)

    def sample_latents(self, mean: Tensor, std: Tensor | None, generator: Generators = None) -> Tensor:
        """Return scaled latents [B, F, 4, h, w] of what encode_moments returned."""
        if std is not None:
            if isinstance(generator, list):  # diffusers takes one per image, and draws from them in turn
                generator = [one for one in generator for _ in range(mean.shape[1])]
            # Drawn for all frames together, so that the noise does not depend on the chunk size.
            noise = randn_tensor(mean.flatten(0, 1).shape, generator, mean.device, mean.dtype)
            mean = mean + std * noise.view(mean.shape)
        return mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_reference(self, images: Tensor, chunk_size: int | None = None) -> Tensor:
        """Return scaled mean latents [B, 4, h, w], without noise, of images [B, 3, H, W] in [-1, 1]."""
        return self._moments(images, chunk_size)[0] * self.vae.config.scaling_factor

    def images_at_once(self, device: torch.device, latent_size: tuple[int, int]) -> int:
        """Return how many images of this size the autoencoder takes at once."""
        return self._at_once(device, tuple(side * self.latent_factor for side in latent_size))

    def _at_once(self, device: torch.device, image_size: tuple[int, int]) -> int:
        return images_at_once(device, image_size, MOST_IMAGES, self.cpu_pixels)

    def _moments(self, images: Tensor, chunk_size: int | None) -> tuple[Tensor, Tensor | None]:
        """Return mean and deviation [N, 4, h, w] of images [N, 3, H, W]."""
        factor, (height, width) = self.latent_factor, images.shape[-2:]
        if height % factor or width % factor:
            raise ModelError(f"images of {height}x{width}: both sides must be multiples of {factor}")
        chunk_size = chunk_size or self._at_once(images.device, (height, width))
        images = images.to(self.vae.dtype)
        if self._is_tiny:
            # Channels last: a seventh less time on a CPU. Not for AutoencoderKL: PyTorch's group norm loses a
            # digit on such tensors.
            chunks = images.contiguous(memory_format=torch.channels_last).split(chunk_size)
            return torch.cat([self.vae.encode(chunk).latents for chunk in chunks]), None
        distributions = [self.vae.encode(chunk).latent_dist for chunk in images.split(chunk_size)]
        return torch.cat([one.mean for one in distributions]), torch.cat([one.std for one in distributions])

    @torch.no_grad()
    def encode_image_tokens(self, images: Tensor) -> Tensor:
        """Return image tokens [B, 1, D], CLIP's projected embeddings of its images [B, 3, 224, 224]."""
        return self.image_encoder(images.to(self.image_encoder.dtype)).image_embeds[:, None]

    @torch.no_grad()
    def decode_frames(self, latents: Tensor, chunk_size: int | None = None) -> Tensor:
        """Return frames [B, F, 3, H, W] in [-1, 1] of scaled latents [B, F, 4, h, w]."""
        flat = latents.flatten(0, 1).to(self.vae.dtype) / self.vae.config.scaling_factor
        chunks = flat.split(chunk_size or self.images_at_once(latents.device, latents.shape[-2:]))
        frames = torch.cat([self.vae.decode(chunk).sample for chunk in chunks])
        return frames.clamp(-1, 1).unflatten(0, latents.shape[:2])


def load_vae(source: str | Path) -> nn.Module:
    """Return a VAE in float32: of a folder (its own, or a model's), a file or a hub id. Raises ModelError."""
    return _load("vae", source, str(source), None, None)


def _find_image_encoder(base: str) -> str:
    if (Path(base).expanduser() / "image_encoder").is_dir():
        return base
    message = "%s has no image_encoder: taking %s (choose another with --image_encoder_name_or_path)"
    logger.warning(message, base, DEFAULT_IMAGE_ENCODER)
    return DEFAULT_IMAGE_ENCODER


def _load(name: str, source: str | Path, base: str, revision: str | None, variant: str | None) -> nn.Module:
    """Return the component `name`; revision and variant are the base's, not a foreign one's."""
    if str(source) != base:
        revision = variant = None
    source, subfolder = local_component(source, name)

    def choose_class() -> type:
        return _vae_class(source, subfolder) if name == "vae" else CLIPVisionModelWithProjection

    with without_false_alarm():
        return load_component(choose_class, source, subfolder, revision=revision, variant=variant)


@contextmanager
def without_false_alarm() -> Iterator[None]:
    """Keep two messages from users: that AutoencoderTiny does not know a key, which it wrote itself, and
    transformers' table of keys, which are checked here."""

    def is_other(record: logging.LogRecord) -> bool:
        return not _FALSE_ALARM.search(record.getMessage())

    names = ("diffusers.configuration_utils", "transformers.modeling_utils")
    loggers = [logging.getLogger(name) for name in names]
    for one in loggers:
        one.addFilter(is_other)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(is_other)


def _vae_class(source: str, subfolder: str | None) -> type:
    name = AutoencoderKL.load_config(source, subfolder=subfolder).get("_class_name", "AutoencoderKL")
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if name not in classes:
        raise ModelError(f"{source}: the VAE is a {name}; CHAMP works with {' or '.join(classes)}")
    return classes[name]
