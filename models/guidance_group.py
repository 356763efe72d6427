"""All guidance encoders of a model: the sum of what they contribute, and how they are saved and loaded."""

import functools
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from system.errors import ModelError

from .chunks import CPU_PIXELS, images_at_once
from .guidance_encoder import MusicMapGuidanceEncoder, create_guidance_encoders, zeroed

PIXELS_PER_LATENT = 8  # along a side, of Stable Diffusion's VAE
UNUSED_WEIGHTS_NAME = "unused_champ_weights.safetensors"


class GuidanceFeatures(NamedTuple):
    """What the denoising UNet adds: to its first feature map, and to its time embedding."""

    spatial: Tensor | None = None  # [B, F, C0, h, w]
    vector: Tensor | None = None  # [B, F, T]


class GuidanceEncoders(ModelMixin, ConfigMixin):
    """Encoders by guidance type, with projections where their width is not the UNet's.

    spatial_channels, vector_channels: widths of the UNet where spatial and vector features enter (320 and
    1280 for SD 1.5). An encoder whose guidance_embedding_channels equal its entry's width has no projection,
    so that official weights fit; the others end in a zero-initialised one.
    """

    __module__ = "models"  # what diffusers writes as the library into model_index.json, and imports again
    _supports_gradient_checkpointing = True
    cpu_pixels = CPU_PIXELS  # of the images encoded at once

    @register_to_config
    def __init__(
        self,
        guidance_types: list[str],
        guidance_input_channels: list[int],
        guidance_embedding_channels: int,
        spatial_channels: int,
        vector_channels: int,
        spatial_music: bool = False,
        guidance_block_out_channels: tuple[int, ...] = (16, 32, 96, 256),
        num_attention_heads: int = 8,
        encoder_class_names: list[str] | None = None,
    ):
        super().__init__()
        channels = (guidance_input_channels, guidance_embedding_channels)
        form = {"block_out_channels": guidance_block_out_channels, "num_attention_heads": num_attention_heads}
        encoders = create_guidance_encoders(guidance_types, *channels, spatial_music=spatial_music, **form)
        self._set_encoders(encoders)
        class_names = self.config.encoder_class_names
        trained = zip(guidance_types, encoder_class_names or class_names, class_names, strict=True)
        for guidance_type, expected, found in trained:
            if expected != found:
                trained_with = f"guidance type {guidance_type!r} was trained with the encoder {expected}"
                fix = "name its Python module with --guidance_modules"
                raise ModelError(f"{trained_with}, which is not registered (found {found}): {fix}")
        # diffusers wants one to set, also where no encoder has a use for it
        self.gradient_checkpointing = False

    def _set_encoders(self, encoders: dict[str, nn.Module]) -> None:
        names = [type(encoder).__name__ for encoder in encoders.values()]
        self.register_to_config(encoder_class_names=names)
        entries = {"spatial": self.config.spatial_channels, "vector": self.config.vector_channels}
        width = self.config.guidance_embedding_channels
        self.encoders = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        for guidance_type, encoder in encoders.items():
            if "." in guidance_type or hasattr(nn.ModuleDict, guidance_type):
                raise ModelError(f"guidance type {guidance_type!r} cannot be used as a name: rename it")
            self.encoders[guidance_type] = encoder
            entry = entries[encoder.guidance_kind]
            if width == entry:
                continue
            is_spatial = encoder.guidance_kind == "spatial"
            projection = nn.Conv2d(width, entry, kernel_size=1) if is_spatial else nn.Linear(width, entry)
            self.projections[guidance_type] = zeroed(projection)
            _wake_output(encoder)

    @classmethod
    def from_encoders(cls, encoders: dict[str, nn.Module], spatial_channels: int, vector_channels: int):
        """Return the group of the given encoders (of `create_guidance_encoders`, say) with their weights."""
        if not encoders:
            raise ModelError("no guidance encoders: CHAMP needs at least one guidance type")
        config = _describe(encoders)
        group = cls(**config, spatial_channels=spatial_channels, vector_channels=vector_channels)
        group._set_encoders(encoders)
        return group

    @property
    def guidance_types(self) -> list[str]:
        return list(self.encoders)

    def forward(
        self,
        guidance: dict[str, Tensor],
        latent_size: tuple[int, int],
        guidance_mask: dict[str, Tensor] | None = None,
        guidance_features: dict[str, Tensor] | None = None,
    ) -> GuidanceFeatures:
        """Return sums over types; guidance {type: [B, F, ...]}, guidance_mask {type: bool [B]}, False =
        contributes nothing; guidance_features {type: of `encode_type`}, taken instead of the guidance."""
        known = guidance_features or {}
        unknown = sorted({*guidance, *known} - set(self.encoders))
        if unknown:
            raise ModelError(f"guidance of type {unknown[0]!r}: the model has {', '.join(self.encoders)}")
        sums: dict[str, Tensor] = {}
        for guidance_type, encoder in self.encoders.items():
            if guidance_type in known:
                feature = known[guidance_type]
            elif guidance_type in guidance:
                feature = self.encode_type(guidance_type, guidance[guidance_type], tuple(latent_size))
            else:
                continue
            if guidance_mask is not None and guidance_type in guidance_mask:
                kept = guidance_mask[guidance_type].view(-1, *[1] * (feature.ndim - 1))
                feature = torch.where(kept, feature, 0.0)
            kind = encoder.guidance_kind
            sums[kind] = sums[kind] + feature if kind in sums else feature
        return GuidanceFeatures(**sums)

    @property
    def frame_by_frame_types(self) -> list[str]:
        """Return the spatial types whose features of a frame depend on that frame's condition alone."""
        return [name for name, encoder in self.encoders.items() if _encodes_frames_alone(encoder)]

    def encode_type(self, guidance_type: str, condition: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """Return features [B, F, C0, h, w] or [B, F, T] of one type."""
        parts = self._parts(self.encoders[guidance_type], condition, latent_size)
        features = [self._encode(guidance_type, part, latent_size) for part in parts]
        feature = features[0]
        if len(parts) > 1:
            feature = torch.cat(features, dim=1)[0].unflatten(0, condition.shape[:2])
        if guidance_type not in self.projections:
            return feature
        return self.projections[guidance_type](feature.flatten(0, 1)).unflatten(0, feature.shape[:2])

    def _parts(self, encoder: nn.Module, condition: Tensor, latent_size: tuple[int, int]) -> list[Tensor]:
        """Return the condition [B, F, ...] itself, or parts of its frames [1, n, ...] if that is faster."""
        num_frames = condition.shape[:2].numel()
        image_size = tuple(PIXELS_PER_LATENT * side for side in latent_size)
        at_once = images_at_once(condition.device, image_size, num_frames, self.cpu_pixels)
        if at_once == num_frames or not _encodes_frames_alone(encoder):
            return [condition]
        return list(condition.flatten(0, 1)[None].split(at_once, dim=1))

    def _encode(self, guidance_type: str, condition: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """Return the encoder's features. Raise ModelError where they have another shape than they must."""
        encoder = self.encoders[guidance_type]
        options = {}
        if getattr(encoder, "takes_image_size", False):
            options["image_size"] = tuple(side * encoder.stride for side in latent_size)
        feature = encoder(condition, **options)
        expected = (*condition.shape[:2], self.config.guidance_embedding_channels)
        if encoder.guidance_kind == "spatial":
            expected += tuple(latent_size)
        if feature.shape != expected:
            given = f"guidance type {guidance_type!r}: a condition of shape {list(condition.shape)}"
            found = f"features of shape {list(feature.shape)}, expected {list(expected)}"
            raise ModelError(f"{given} gave {found} (latents of {latent_size[0]}x{latent_size[1]})")
        return feature

    @functools.wraps(ModelMixin.save_pretrained)  # a pipeline asks the signature what it may pass on: variant
    def save_pretrained(self, save_directory, *args, **kwargs):
        """Write weights, configuration, and beside them what official files hold and the model never uses."""
        super().save_pretrained(save_directory, *args, **kwargs)
        unused = {
            f"{guidance_type}.{name}": tensor
            for guidance_type, encoder in self.encoders.items()
            for name, tensor in getattr(encoder, "unused_weights", {}).items()
        }
        if unused:
            save_file(unused, Path(save_directory) / UNUSED_WEIGHTS_NAME)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        result = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        group = result[0] if isinstance(result, tuple) else result
        unused_path = Path(pretrained_model_name_or_path) / kwargs.get("subfolder", "") / UNUSED_WEIGHTS_NAME
        if unused_path.is_file():
            for key, tensor in load_file(unused_path).items():
                guidance_type, name = key.split(".", 1)
                group.encoders[guidance_type].unused_weights[name] = tensor
        return result


def _encodes_frames_alone(encoder: nn.Module) -> bool:
    """Return whether a frame's features depend on its condition alone; each class says so for itself."""
    return encoder.guidance_kind == "spatial" and vars(type(encoder)).get("encodes_frames_alone", False)


def _wake_output(encoder: nn.Module) -> None:
    """Give a zero output layer ordinary values: behind a zero projection it would never learn."""
    layer = getattr(encoder, "output_layer", None)
    if layer is not None and not layer.weight.is_meta and not layer.weight.any():
        layer.reset_parameters()


def _describe(encoders: dict[str, nn.Module]) -> dict:
    """Return the configuration that these encoders were made with. Raise ModelError when one lacks it."""
    fix = "register its class with register_guidance_encoder, make it with create_guidance_encoders"
    for guidance_type, encoder in encoders.items():
        for name in ("guidance_embedding_channels", "guidance_input_channels", "guidance_kind"):
            if not hasattr(encoder, name):
                problem = f"the encoder of {guidance_type!r} ({type(encoder).__name__}) has no {name}"
                raise ModelError(f"{problem}: {fix}")
    widths = {encoder.guidance_embedding_channels for encoder in encoders.values()}
    shaped = [encoder for encoder in encoders.values() if hasattr(encoder, "block_out_channels")]
    shapes = {(encoder.block_out_channels, encoder.num_attention_heads) for encoder in shaped}
    if len(widths) > 1 or len(shapes) > 1:
        shared = "guidance_embedding_channels and block_out_channels"
        raise ModelError(f"all guidance encoders of a model share {shared}")
    config = {
        "guidance_types": list(encoders),
        "guidance_input_channels": [encoder.guidance_input_channels for encoder in encoders.values()],
        "guidance_embedding_channels": widths.pop(),
        "spatial_music": any(isinstance(encoder, MusicMapGuidanceEncoder) for encoder in encoders.values()),
    }
    if shapes:
        config["guidance_block_out_channels"], config["num_attention_heads"] = shapes.pop()
    return config
