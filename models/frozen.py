"""The networks that are never trained: the autoencoder (VAE) and the CLIP image encoder."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from .errors import ModelError
from .model_files import load_component, local_component

logger = logging.getLogger(__name__)

# diffusers' AutoencoderTiny writes block_out_channels into its own configuration and complains at each load
# that it does not know it. Only this message, of this one key, is kept from users.
_FALSE_ALARM = re.compile(r"\{'block_out_channels': [\[(][\d, ]*[\])]\} were passed to AutoencoderTiny,")
logging.getLogger("diffusers.configuration_utils").addFilter(
    lambda record: not _FALSE_ALARM.search(record.getMessage())
)

# Stable Diffusion 1.5 comes without an image encoder; this is CHAMP's: CLIP ViT-L/14 with its 768-wide
# projection.
DEFAULT_IMAGE_ENCODER = "lambdalabs/sd-image-variations-diffusers"


class FrozenEncoders(nn.Module):
    """Pictures to latents and back, and pictures to image tokens. Nothing here has a gradient."""

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
        """The `vae` and `image_encoder` folders of a Stable Diffusion folder or hub id, in float32.

        The two other paths may be such a folder or id too, or the component's own.
        """
        base = str(pretrained_model_name_or_path)
        vae = _load("vae", vae_model_name_or_path or base, base, revision, variant)
        image_encoder_source = image_encoder_name_or_path or _find_image_encoder(base)
        return cls(vae, _load("image_encoder", image_encoder_source, base, revision, variant))

    def train(self, mode: bool = True) -> "FrozenEncoders":
        return super().train(False)  # frozen means evaluation mode, whatever a parent module is told

    @property
    def latent_factor(self) -> int:
        """Pixels per latent, along each side."""
        config = self.vae.config
        widths = config.encoder_block_out_channels if self._is_tiny else config.block_out_channels
        return 2 ** (len(widths) - 1)

    @property
    def image_token_width(self) -> int:
        return self.image_encoder.config.projection_dim

    @property
    def _is_tiny(self) -> bool:
        return isinstance(self.vae, AutoencoderTiny)

    @torch.no_grad()
    def encode_frames(
        self,
        frames: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        chunk_size: int = 8,
    ) -> Tensor:
        """Scaled latents [B, F, 4, h, w], sampled with `generator`, of frames [B, F, 3, H, W] in [-1, 1].

        With a list of B generators a clip's latents do not depend on the others of its batch.
        """
        if isinstance(generator, list):  # diffusers takes one per picture, and draws from them in turn
            generator = [one for one in generator for _ in range(frames.shape[1])]
        latents = self._encode(frames.flatten(0, 1), chunk_size, generator=generator, sample=True)
        return latents.unflatten(0, frames.shape[:2])

    @torch.no_grad()
    def encode_reference(self, images: Tensor, chunk_size: int = 8) -> Tensor:
        """Scaled mean latents [B, 4, h, w], without noise, of images [B, 3, H, W] in [-1, 1]."""
        return self._encode(images, chunk_size, generator=None, sample=False)

    def _encode(
        self, images: Tensor, chunk_size: int, *, generator: torch.Generator | list | None, sample: bool
    ) -> Tensor:
        """[N, 3, H, W] -> [N, 4, h, w]"""
        factor = self.latent_factor
        if images.shape[-2] % factor or images.shape[-1] % factor:
            raise ModelError(
                f"pictures of {images.shape[-2]}x{images.shape[-1]}: both sides must be multiples of {factor}"
            )
        images = images.to(self.vae.dtype)
        if self._is_tiny:
            latents = torch.cat([self.vae.encode(chunk).latents for chunk in images.split(chunk_size)])
        else:
            # Sampled after all chunks, so that the noise does not depend on the chunk size.
            moments = [self.vae.encode(chunk).latent_dist.parameters for chunk in images.split(chunk_size)]
            distribution = DiagonalGaussianDistribution(torch.cat(moments))
            latents = distribution.sample(generator) if sample else distribution.mode()
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_image_tokens(self, images: Tensor) -> Tensor:
        """Image tokens [B, 1, D] (CLIP's projected image embedding) of CLIP-normalised images [B, 3, 224,
        224]."""
        return self.image_encoder(images.to(self.image_encoder.dtype)).image_embeds[:, None]

    @torch.no_grad()
    def decode_frames(self, latents: Tensor, chunk_size: int = 8) -> Tensor:
        """Frames [B, F, 3, H, W] in [-1, 1] of scaled latents [B, F, 4, h, w]."""
        flat = latents.flatten(0, 1).to(self.vae.dtype) / self.vae.config.scaling_factor
        frames = torch.cat(list(self._decode_chunks(flat, chunk_size)))
        return frames.clamp(-1, 1).unflatten(0, latents.shape[:2])

    def _decode_chunks(self, latents: Tensor, chunk_size: int) -> Iterator[Tensor]:
        for chunk in latents.split(chunk_size):
            yield self.vae.decode(chunk).sample


def _find_image_encoder(base: str) -> str:
    if (Path(base).expanduser() / "image_encoder").is_dir():
        return base
    logger.warning(
        "%s has no image_encoder: taking %s (choose another with --image_encoder_name_or_path)",
        base,
        DEFAULT_IMAGE_ENCODER,
    )
    return DEFAULT_IMAGE_ENCODER


def _load(name: str, source: str | Path, base: str, revision: str | None, variant: str | None) -> nn.Module:
    """The component `name`; revision and variant are the base's, not those of a component from elsewhere."""
    if str(source) != base:
        revision = variant = None
    source, subfolder = local_component(source, name)

    def choose_class() -> type:
        return _vae_class(source, subfolder) if name == "vae" else CLIPVisionModelWithProjection

    return load_component(choose_class, source, subfolder, revision=revision, variant=variant)


def _vae_class(source: str, subfolder: str | None) -> type:
    name = AutoencoderKL.load_config(source, subfolder=subfolder).get("_class_name", "AutoencoderKL")
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if name not in classes:
        raise ModelError(f"{source}: the VAE is a {name}; CHAMP works with {' or '.join(classes)}")
    return classes[name]
