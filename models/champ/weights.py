"""Models read and written: Stable Diffusion folders, AnimateDiff files, released CHAMP folders, our own.

Every loader checks the keys: one missing or unexpected is a ModelError unless on one of the lists below.
"""

import logging
import re
from pathlib import Path
from typing import Self

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from models.guidance_encoder import ImageGuidanceEncoder
from models.guidance_group import GuidanceEncoders
from models.lora.adapters import check_merged
from models.lora.files import LORA_FILE
from models.model_files import load_component, load_strictly, local_component
from models.single_file import kind_of
from models.weight_files import read_weights
from system.errors import ModelError

from .denoising_unet import ImageDenoisingUNet, MotionDenoisingUNet

logger = logging.getLogger(__name__)

MOTION_MODULES = ".motion_modules."  # in the middle of each of their keys
COMPONENTS = ("unet", "reference_unet", "guidance_encoders")

# The original model has no output layers in its reference UNet, so its files do not hold them; ours are the
# base's.
REFERENCE_KEYS_NOT_IN_CHAMP = ("conv_norm_out.", "conv_out.")
# AnimateDiff's first and third motion modules have none in the middle block: ours stays as it starts, the
# identity.
MOTION_KEYS_NOT_IN_ANIMATEDIFF = ("mid_block.motion_modules.",)
# AnimateDiff's third file holds its configuration beside the weights.
MOTION_KEYS_TO_IGNORE = ("animatediff_config",)
PROJECTION_PREFIX = "guidance_projection."

_MOTION_KEY_PAIRS = (  # AnimateDiff and CHAMP, diffusers
    (".attention_blocks.0.", ".attn1."),
    (".attention_blocks.1.", ".attn2."),
    (".norms.0.", ".norm1."),
    (".norms.1.", ".norm2."),
    (".ff_norm.", ".norm3."),
)


class ChampWeights:
    """How a ChampModel is loaded and saved."""

    pretrained_names: frozenset[str] = frozenset()  # of parameters; they learn with a smaller rate

    @classmethod
    def from_pretrained_sd(
        cls,
        path: str | Path,
        guidance_encoders: dict[str, nn.Module] | GuidanceEncoders,
        motion_module_path: str | Path | None = None,
        *,
        motion_modules: bool = True,
        revision: str | None = None,
        variant: str | None = None,
    ) -> Self:
        """Return a model of the `unet` folder of a Stable Diffusion 1.5 folder or hub id, in float32.

        motion_module_path: an AnimateDiff or CHAMP motion module file; without it motion modules start as
        identity.
        """
        if motion_module_path is not None and not motion_modules:
            problem = "motion_module_path is given for a model without motion modules"
            raise ModelError(f"{problem}: leave one of them out")
        source, subfolder = local_component(path, "unet")
        options = {"revision": revision, "variant": variant}
        reference_unet = load_component(lambda: UNet2DConditionModel, source, subfolder, **options)
        if motion_module_path is None:
            unet_class = MotionDenoisingUNet if motion_modules else ImageDenoisingUNet
            unet = unet_class.from_unet2d(reference_unet)
            fresh = _motion_parameters(unet)
        else:
            state = motion_keys_to_diffusers(read_weights(motion_module_path), motion_module_path)
            num_positions = _num_positions(state, motion_module_path)
            unet = MotionDenoisingUNet.from_unet2d(reference_unet, num_positions=num_positions)
            fresh = load_motion_modules(unet, state, motion_module_path)
        model = cls(unet, reference_unet, as_group(guidance_encoders, unet))
        model._set_pretrained_names(fresh, loaded_types=set())
        return model

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, variant: str | None = None) -> Self:
        """Return the model that `save_pretrained` wrote (an `output_dir/final` folder), in float32.

        variant: of the weights' files, as diffusers names them ("fp16").
        """
        directory = Path(directory)
        missing = [name for name in COMPONENTS if not (directory / name / "config.json").is_file()]
        if missing:
            problem = f"{directory} is not a saved CHAMP model: {missing[0]}/config.json is missing"
            raise ModelError(f"{problem} (expected the folder that training writes: OUTPUT_DIR/final)")
        classes = {"ImageDenoisingUNet": ImageDenoisingUNet, "MotionDenoisingUNet": MotionDenoisingUNet}
        class_name = ImageDenoisingUNet.load_config(directory / "unet").get("_class_name")
        if class_name not in classes:
            raise ModelError(f"{directory / 'unet'} holds a {class_name}, expected {' or '.join(classes)}")
        model = cls(
            load_component(lambda: classes[class_name], directory, "unet", variant=variant),
            load_component(lambda: UNet2DConditionModel, directory, "reference_unet", variant=variant),
            load_component(lambda: GuidanceEncoders, directory, "guidance_encoders", variant=variant),
        )
        model._set_pretrained_names(set(), loaded_types=set(model.guidance_encoders.guidance_types))
        return model

    @classmethod
    def from_champ_checkpoint(
        cls,
        base_dir: str | Path,
        champ_checkpoint_dir: str | Path,
        guidance_encoders: dict[str, nn.Module] | GuidanceEncoders,
        motion_modules: bool = True,
        *,
        revision: str | None = None,
        variant: str | None = None,
    ) -> Self:
        """Return a released CHAMP folder (base_dir gives the configuration), or our own `final/` folder.

        revision and variant are those of base_dir.
        """
        directory = Path(champ_checkpoint_dir)
        if not directory.is_dir():
            raise ModelError(f"{directory} does not exist (champ_checkpoint_dir)")
        if (directory / "unet" / "config.json").is_file():
            model, fresh, loaded_types = cls._from_final(directory, guidance_encoders, motion_modules)
        elif (directory / "denoising_unet.pth").is_file():
            options = {"motion_modules": motion_modules, "revision": revision, "variant": variant}
            model = cls.from_pretrained_sd(base_dir, guidance_encoders, **options)
            fresh, loaded_types = _load_official(model, directory)
        else:
            released = "denoising_unet.pth, ... (a released CHAMP folder)"
            ours = "unet/, reference_unet/, guidance_encoders/ (OUTPUT_DIR/final)"
            hint = ""
            if (directory / LORA_FILE).is_file():
                merged = "what sample_guidance.py --merge_lora makes of both"
                hint = f"; it holds adapters: give their base, or {merged}"
            raise ModelError(f"{directory} holds neither {released} nor {ours}{hint}")
        for guidance_type in sorted(set(model.guidance_encoders.guidance_types) - loaded_types):
            logger.warning("%s has no guidance encoder for %s: it starts untrained", directory, guidance_type)
        model._set_pretrained_names(fresh, loaded_types)
        return model

    @classmethod
    def _from_final(cls, directory: Path, guidance_encoders, motion_modules: bool):
        """Return the model of our own final/ folder with or without motion modules and with the given types,
        and as `_load_official` does what starts fresh and what is loaded."""
        saved = cls.from_pretrained(directory)
        unet, fresh = saved.unet, set()
        if motion_modules and not saved.has_motion_modules:
            unet = MotionDenoisingUNet.from_unet2d(saved.unet)
            fresh = _motion_parameters(unet)
            logger.warning("%s has no motion modules: they start as identity", directory)
        elif saved.has_motion_modules and not motion_modules:
            unet = ImageDenoisingUNet.from_config(saved.reference_unet.config)
            load_strictly(unet, _without_motion(saved.unet.state_dict()), directory / "unet")
        group = as_group(guidance_encoders, unet)
        saved_types = saved.guidance_encoders.guidance_types
        loaded_types = [name for name in group.guidance_types if name in saved_types]
        for guidance_type in loaded_types:
            state = official_encoder_state(saved.guidance_encoders, guidance_type)
            load_official_encoder(group, guidance_type, state, directory / "guidance_encoders")
        return cls(unet, saved.reference_unet, group), fresh, set(loaded_types)

    def _set_pretrained_names(self, fresh_unet_names: set[str], loaded_types: set[str]) -> None:
        fresh = {f"unet.{name}" for name in fresh_unet_names}
        self.pretrained_names = frozenset(
            name
            for name, _ in self.named_parameters()
            if name not in fresh
            if not name.startswith("guidance_encoders.") or name.split(".")[2] in loaded_types
        )

    def save_pretrained(self, directory: str | Path, *, variant: str | None = None) -> None:
        """Write unet/, reference_unet/ and guidance_encoders/, each config.json and safetensors."""
        check_merged(self)
        for name in COMPONENTS:
            getattr(self, name).save_pretrained(Path(directory) / name, variant=variant)

    def save_champ_checkpoint(self, directory: str | Path) -> None:
        """Write the layout of the released CHAMP files (.pth)."""
        check_merged(self)
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        unet, reference = self.unet.state_dict(), self.reference_unet.state_dict()
        left_out = REFERENCE_KEYS_NOT_IN_CHAMP
        files = {
            "denoising_unet": _without_motion(unet),
            "reference_unet": {key: one for key, one in reference.items() if not key.startswith(left_out)},
        }
        if self.has_motion_modules:
            files["motion_module"] = motion_keys_to_champ(unet)
        for guidance_type in self.guidance_encoders.guidance_types:
            state = official_encoder_state(self.guidance_encoders, guidance_type)
            files[f"guidance_encoder_{guidance_type}"] = state
        for name, state in files.items():
            torch.save({key: value.detach().cpu() for key, value in state.items()}, directory / f"{name}.pth")


def _load_official(model: ChampWeights, directory: Path) -> tuple[set[str], set[str]]:
    """Load a released CHAMP folder. Return the UNet's parameters that start fresh, and the loaded types."""
    path = directory / "denoising_unet.pth"
    image_keys = _without_motion(read_weights(path))
    motion_keys = [key for key in model.unet.state_dict() if MOTION_MODULES in key]
    load_strictly(model.unet, image_keys, path, may_miss=motion_keys)
    fresh = _load_official_motion(model.unet, directory) if model.has_motion_modules else set()
    path = directory / "reference_unet.pth"
    load_strictly(model.reference_unet, read_weights(path), path, may_miss=REFERENCE_KEYS_NOT_IN_CHAMP)
    loaded_types = set()
    for guidance_type in model.guidance_encoders.guidance_types:
        path = directory / f"guidance_encoder_{guidance_type}.pth"
        if path.is_file():
            load_official_encoder(model.guidance_encoders, guidance_type, read_weights(path), path)
            loaded_types.add(guidance_type)
    return fresh, loaded_types


def as_group(guidance_encoders: dict[str, nn.Module] | GuidanceEncoders, unet: nn.Module) -> GuidanceEncoders:
    """Return the encoders as one module that fits `unet`."""
    spatial_channels = unet.config.block_out_channels[0]
    vector_channels = unet.time_embedding.linear_2.out_features
    if not isinstance(guidance_encoders, GuidanceEncoders):
        return GuidanceEncoders.from_encoders(guidance_encoders, spatial_channels, vector_channels)
    config = guidance_encoders.config
    if (config.spatial_channels, config.vector_channels) != (spatial_channels, vector_channels):
        made_for = f"guidance encoders made for a UNet of width {config.spatial_channels}"
        raise ModelError(f"{made_for}, this one has {spatial_channels}")
    return guidance_encoders


# Motion modules


def motion_keys_to_diffusers(state: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Return motion module weights, named as by AnimateDiff, CHAMP or diffusers, under diffusers' names."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in MOTION_KEYS_TO_IGNORE:
            continue
        key = key.replace(".temporal_transformer.", ".")
        # The original stores one and the same table of positions for both attentions of a block.
        key = re.sub(r"\.attention_blocks\.[01]\.pos_encoder\.pe$", ".pos_embed.pe", key)
        for theirs, ours in _MOTION_KEY_PAIRS:
            key = key.replace(theirs, ours)
        if key in converted and not torch.equal(converted[key], value):
            raise ModelError(f"{source}: the two attentions of {key} have different positions")
        converted[key] = value
    if not any(MOTION_MODULES in key for key in converted):
        expected = "expected keys like down_blocks.0.motion_modules.0..."
        raise ModelError(f"{source} holds no motion modules, it is {kind_of(state)}: {expected}")
    if any(re.search(r"lora|controlnet_cond_embedding\.|input_hint_block\.", key) for key in converted):
        expected = "expected AnimateDiff's motion modules themselves (mm_sd_v15_v2.ckpt for example)"
        raise ModelError(f"{source} is {kind_of(state)}: {expected}")
    others = len(_without_motion(converted))
    if others:
        logger.warning("%s: its %d weights outside motion modules are left out", source, others)
    return {key: value for key, value in converted.items() if MOTION_MODULES in key}


def motion_keys_to_champ(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the motion modules in `state` (diffusers' names) under the names of AnimateDiff and CHAMP."""
    converted = {}
    for key, value in state.items():
        if MOTION_MODULES not in key:
            continue
        key = re.sub(r"(\.motion_modules\.\d+\.)", r"\1temporal_transformer.", key)
        if key.endswith(".pos_embed.pe"):
            for index in (0, 1):  # one table each; copies, because safetensors refuses shared memory
                name = key.replace(".pos_embed.pe", f".attention_blocks.{index}.pos_encoder.pe")
                converted[name] = value.clone()
            continue
        for theirs, ours in _MOTION_KEY_PAIRS:
            key = key.replace(ours, theirs)
        converted[key] = value
    return converted


def load_motion_modules(unet: MotionDenoisingUNet, state: dict[str, Tensor], source: str | Path) -> set[str]:
    """Load motion module weights (diffusers' names). Return the names of parameters that they leave alone."""
    levels = {key.split(".")[1] for key in state if key.startswith("down_blocks.")}
    if len(levels) != len(unet.down_blocks):
        found = f"holds motion modules of a UNet with {len(levels)} levels"
        example = "AnimateDiff's for Stable Diffusion XL has 3, those for 1.5 have 4"
        raise ModelError(f"{source} {found}, this one has {len(unet.down_blocks)}: {example}")
    not_in_file = [*_without_motion(unet.state_dict())]
    if not any(key.startswith(MOTION_KEYS_NOT_IN_ANIMATEDIFF) for key in state):
        logger.warning("%s has no motion module for the middle block: it starts as identity", source)
        not_in_file += MOTION_KEYS_NOT_IN_ANIMATEDIFF
    load_strictly(unet, state, source, may_miss=not_in_file)
    return _motion_parameters(unet) - set(state)


def _num_positions(state: dict[str, Tensor], source: str | Path) -> int:
    """Return how many frames the table of positions has room for: 32, in AnimateDiff's first version 24."""
    lengths = {value.shape[1] for key, value in state.items() if key.endswith(".pos_embed.pe")}
    if len(lengths) != 1:
        raise ModelError(f"{source}: expected one length of position tables, found {sorted(lengths)}")
    return lengths.pop()


def _load_official_motion(unet: MotionDenoisingUNet, checkpoint_dir: Path) -> set[str]:
    path = checkpoint_dir / "motion_module.pth"
    if path.is_file():
        return load_motion_modules(unet, motion_keys_to_diffusers(read_weights(path), path), path)
    logger.warning("%s has no motion_module.pth: the motion modules start as identity", checkpoint_dir)
    return _motion_parameters(unet)


def _motion_parameters(unet: nn.Module) -> set[str]:
    return {name for name, _ in unet.named_parameters() if MOTION_MODULES in name}


def _without_motion(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if MOTION_MODULES not in key}


# Guidance encoders


def load_official_encoder(
    group: GuidanceEncoders, guidance_type: str, state: dict[str, Tensor], source: str | Path
) -> None:
    """Load one type's encoder (and projection) from the official layout."""
    encoder = group.encoders[guidance_type]
    own, projection = {}, {}
    for key, value in state.items():
        is_image = isinstance(encoder, ImageGuidanceEncoder)
        if key.startswith(PROJECTION_PREFIX):
            projection[key.removeprefix(PROJECTION_PREFIX)] = value
        elif is_image and key.startswith(_attention_prefix(encoder)):
            own[key.replace(_attention_prefix(encoder), "attention.")] = value
        elif is_image and key.startswith(("attentions.", "guidance_attention.")):
            encoder.unused_weights[key] = value  # never run by the original; kept to be written back
        else:
            own[key] = value
    load_strictly(encoder, own, source)
    own_projection = group.projections[guidance_type] if guidance_type in group.projections else nn.Identity()
    load_strictly(own_projection, projection, f"{source} ({PROJECTION_PREFIX}*)")


def official_encoder_state(group: GuidanceEncoders, guidance_type: str) -> dict[str, Tensor]:
    """Return one type's encoder (and projection) in the official layout."""
    encoder = group.encoders[guidance_type]
    state = dict(encoder.state_dict())
    if isinstance(encoder, ImageGuidanceEncoder):
        prefix = _attention_prefix(encoder)
        state = {re.sub(r"^attention\.", prefix, key): value for key, value in state.items()}
        state |= encoder.unused_weights
    if guidance_type in group.projections:
        projection = group.projections[guidance_type].state_dict()
        state |= {f"{PROJECTION_PREFIX}{key}": value for key, value in projection.items()}
    return state


def _attention_prefix(encoder: ImageGuidanceEncoder) -> str:
    """Return the prefix of the last attention, the only one of its numbered ones that the original runs."""
    return f"attentions.{len(encoder.blocks) - 1}."
