"""Reading and writing models: Stable Diffusion folders, AnimateDiff files, released CHAMP folders, our own.

Every loader checks the keys: one missing or unexpected is a ModelError unless on one of the lists below.
"""

import logging
import re
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from models.guidance_encoder import ImageGuidanceEncoder
from models.guidance_group import GuidanceEncoders
from models.model_files import load_component, load_strictly, local_component, read_weights
from system.errors import ModelError

from .denoising_unet import ImageDenoisingUNet, MotionDenoisingUNet

logger = logging.getLogger(__name__)

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


# Whole models


def from_pretrained_sd(
    model_class,
    path: str | Path,
    guidance_encoders,
    motion_module_path: str | Path | None,
    *,
    motion_modules: bool,
    revision: str | None = None,
    variant: str | None = None,
):
    """See ChampModel.from_pretrained_sd."""
    if motion_module_path is not None and not motion_modules:
        raise ModelError(
            "motion_module_path is given for a model without motion modules: leave one of them out"
        )
    source, subfolder = local_component(path, "unet")
    reference_unet = load_component(
        lambda: UNet2DConditionModel, source, subfolder, revision=revision, variant=variant
    )
    fresh: set[str] = set()
    if not motion_modules:
        unet = ImageDenoisingUNet.from_unet2d(reference_unet)
    elif motion_module_path is None:
        unet = MotionDenoisingUNet.from_unet2d(reference_unet)
        fresh = {name for name, _ in unet.named_parameters() if ".motion_modules." in name}
    else:
        state = motion_keys_to_diffusers(read_weights(motion_module_path), motion_module_path)
        unet = MotionDenoisingUNet.from_unet2d(
            reference_unet, num_positions=_num_positions(state, motion_module_path)
        )
        fresh = load_motion_modules(unet, state, motion_module_path)
    model = model_class(unet, reference_unet, as_group(guidance_encoders, unet))
    model.pretrained_names = frozenset(
        name for name, _ in model.named_parameters() if not name.startswith("guidance_encoders.")
    ) - {f"unet.{name}" for name in fresh}
    return model


def from_pretrained(model_class, directory: str | Path):
    """See ChampModel.from_pretrained."""
    directory = Path(directory)
    missing = [name for name in COMPONENTS if not (directory / name / "config.json").is_file()]
    if missing:
        raise ModelError(
            f"{directory} is not a saved CHAMP model: {missing[0]}/config.json is missing "
            "(expected the folder that training writes: OUTPUT_DIR/final)"
        )
    classes = {"ImageDenoisingUNet": ImageDenoisingUNet, "MotionDenoisingUNet": MotionDenoisingUNet}
    class_name = ImageDenoisingUNet.load_config(directory / "unet").get("_class_name")
    if class_name not in classes:
        raise ModelError(f"{directory / 'unet'} holds a {class_name}, expected {' or '.join(classes)}")
    model = model_class(
        load_component(lambda: classes[class_name], directory, "unet"),
        load_component(lambda: UNet2DConditionModel, directory, "reference_unet"),
        load_component(lambda: GuidanceEncoders, directory, "guidance_encoders"),
    )
    model.pretrained_names = frozenset(name for name, _ in model.named_parameters())
    return model


def from_champ_checkpoint(
    model_class,
    base_dir: str | Path,
    checkpoint_dir: str | Path,
    guidance_encoders,
    *,
    motion_modules: bool,
    revision: str | None,
    variant: str | None,
):
    """See ChampModel.from_champ_checkpoint."""
    checkpoint_dir = Path(checkpoint_dir)
    if not checkpoint_dir.is_dir():
        raise ModelError(f"{checkpoint_dir} does not exist (champ_checkpoint_dir)")
    if (checkpoint_dir / "unet" / "config.json").is_file():
        return _from_final(model_class, checkpoint_dir, guidance_encoders, motion_modules=motion_modules)
    if not (checkpoint_dir / "denoising_unet.pth").is_file():
        raise ModelError(
            f"{checkpoint_dir} holds neither denoising_unet.pth, ... (a released CHAMP folder) "
            "nor unet/, reference_unet/, guidance_encoders/ (OUTPUT_DIR/final)"
        )
    model = from_pretrained_sd(
        model_class, base_dir, guidance_encoders, None, motion_modules=motion_modules,
        revision=revision, variant=variant,
    )  # fmt: skip

    path = checkpoint_dir / "denoising_unet.pth"
    denoising = read_weights(path)
    image_keys = {key: value for key, value in denoising.items() if ".motion_modules." not in key}
    load_strictly(model.unet, image_keys, path, may_miss=_motion_prefixes(model.unet))
    fresh = _load_official_motion(model.unet, checkpoint_dir) if motion_modules else set()
    path = checkpoint_dir / "reference_unet.pth"
    load_strictly(model.reference_unet, read_weights(path), path, may_miss=REFERENCE_KEYS_NOT_IN_CHAMP)
    loaded_types = set()
    for guidance_type in model.guidance_encoders.guidance_types:
        path = checkpoint_dir / f"guidance_encoder_{guidance_type}.pth"
        if path.is_file():
            load_official_encoder(model.guidance_encoders, guidance_type, read_weights(path), path)
            loaded_types.add(guidance_type)
    _set_pretrained_names(model, fresh, loaded_types, checkpoint_dir)
    return model


def _from_final(model_class, directory: Path, guidance_encoders, *, motion_modules: bool):
    """Our own final/ folder, with motion modules added or left out, and with the given guidance types."""
    saved = from_pretrained(model_class, directory)
    unet, fresh = saved.unet, set()
    if motion_modules and not saved.has_motion_modules:
        unet = MotionDenoisingUNet.from_unet2d(saved.unet)
        fresh = {name for name, _ in unet.named_parameters() if ".motion_modules." in name}
        logger.warning("%s has no motion modules: they start as identity", directory)
    elif saved.has_motion_modules and not motion_modules:
        unet = ImageDenoisingUNet.from_config(saved.reference_unet.config)
        image_keys = {
            key: value for key, value in saved.unet.state_dict().items() if ".motion_modules." not in key
        }
        load_strictly(unet, image_keys, directory / "unet")
    group = as_group(guidance_encoders, unet)
    loaded_types = set()
    for guidance_type in group.guidance_types:
        if guidance_type in saved.guidance_encoders.guidance_types:
            state = official_encoder_state(saved.guidance_encoders, guidance_type)
            load_official_encoder(group, guidance_type, state, directory / "guidance_encoders")
            loaded_types.add(guidance_type)
    model = model_class(unet, saved.reference_unet, group)
    _set_pretrained_names(model, fresh, loaded_types, directory)
    return model


def _set_pretrained_names(model, fresh_unet_names: set[str], loaded_types: set[str], source: Path) -> None:
    for guidance_type in sorted(set(model.guidance_encoders.guidance_types) - loaded_types):
        logger.warning("%s has no guidance encoder for %s: it starts untrained", source, guidance_type)
    fresh = {f"unet.{name}" for name in fresh_unet_names}
    model.pretrained_names = frozenset(
        name
        for name, _ in model.named_parameters()
        if name not in fresh
        if not name.startswith("guidance_encoders.") or name.split(".")[2] in loaded_types
    )


def save_champ_checkpoint(model, directory: str | Path) -> None:
    """See ChampModel.save_champ_checkpoint."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    unet = model.unet.state_dict()
    files = {
        "denoising_unet": {key: value for key, value in unet.items() if ".motion_modules." not in key},
        "reference_unet": {
            key: value
            for key, value in model.reference_unet.state_dict().items()
            if not key.startswith(REFERENCE_KEYS_NOT_IN_CHAMP)
        },
    }
    if model.has_motion_modules:
        files["motion_module"] = motion_keys_to_champ(unet)
    for guidance_type in model.guidance_encoders.guidance_types:
        files[f"guidance_encoder_{guidance_type}"] = official_encoder_state(
            model.guidance_encoders, guidance_type
        )
    for name, state in files.items():
        torch.save({key: value.detach().cpu() for key, value in state.items()}, directory / f"{name}.pth")


def as_group(guidance_encoders: dict[str, nn.Module] | GuidanceEncoders, unet: nn.Module) -> GuidanceEncoders:
    """The encoders as one module that fits `unet`."""
    spatial_channels = unet.config.block_out_channels[0]
    vector_channels = unet.time_embedding.linear_2.out_features
    if not isinstance(guidance_encoders, GuidanceEncoders):
        return GuidanceEncoders.from_encoders(guidance_encoders, spatial_channels, vector_channels)
    config = guidance_encoders.config
    if (config.spatial_channels, config.vector_channels) != (spatial_channels, vector_channels):
        raise ModelError(
            f"guidance encoders made for a UNet of width {config.spatial_channels}, "
            f"this one has {spatial_channels}"
        )
    return guidance_encoders


# Motion modules


def motion_keys_to_diffusers(state: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Motion module weights under diffusers' names; names of AnimateDiff and CHAMP or diffusers' own are
    taken."""
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
    if not any(".motion_modules." in key for key in converted):
        raise ModelError(f"{source} holds no motion modules (keys like down_blocks.0.motion_modules.0...)")
    return converted


def motion_keys_to_champ(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The motion modules in `state` (diffusers' names) under the names of AnimateDiff and CHAMP."""
    converted = {}
    for key, value in state.items():
        if ".motion_modules." not in key:
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
    """Loads motion module weights (diffusers' names); the names of parameters that they leave alone."""
    not_in_file = [key for key in unet.state_dict() if ".motion_modules." not in key]
    has_middle = any(key.startswith(MOTION_KEYS_NOT_IN_ANIMATEDIFF) for key in state)
    if not has_middle:
        logger.warning("%s has no motion module for the middle block: it starts as identity", source)
    load_strictly(
        unet, state, source, may_miss=(*not_in_file, *(() if has_middle else MOTION_KEYS_NOT_IN_ANIMATEDIFF))
    )
    return {name for name, _ in unet.named_parameters() if ".motion_modules." in name and name not in state}


def _num_positions(state: dict[str, Tensor], source: str | Path) -> int:
    """Frames that the motion modules' table of positions has room for: 32, in AnimateDiff's first version
    24."""
    lengths = {value.shape[1] for key, value in state.items() if key.endswith(".pos_embed.pe")}
    if len(lengths) != 1:
        raise ModelError(f"{source}: expected one length of position tables, found {sorted(lengths)}")
    return lengths.pop()


def _load_official_motion(unet: MotionDenoisingUNet, checkpoint_dir: Path) -> set[str]:
    path = checkpoint_dir / "motion_module.pth"
    if path.is_file():
        return load_motion_modules(unet, motion_keys_to_diffusers(read_weights(path), path), path)
    logger.warning("%s has no motion_module.pth: the motion modules start as identity", checkpoint_dir)
    return {name for name, _ in unet.named_parameters() if ".motion_modules." in name}


def _motion_prefixes(unet: nn.Module) -> tuple[str, ...]:
    return tuple(key for key in unet.state_dict() if ".motion_modules." in key)


# Guidance encoders


def load_official_encoder(
    group: GuidanceEncoders, guidance_type: str, state: dict[str, Tensor], source: str | Path
) -> None:
    """Loads one type's encoder (and projection) from the official layout."""
    encoder = group.encoders[guidance_type]
    own, projection = {}, {}
    for key, value in state.items():
        if key.startswith(PROJECTION_PREFIX):
            projection[key.removeprefix(PROJECTION_PREFIX)] = value
        elif not isinstance(encoder, ImageGuidanceEncoder):
            own[key] = value
        elif key.startswith(_attention_prefix(encoder)):
            own[key.replace(_attention_prefix(encoder), "attention.")] = value
        elif key.startswith(("attentions.", "guidance_attention.")):
            encoder.unused_weights[key] = value  # never run by the original; kept to be written back
        else:
            own[key] = value
    load_strictly(encoder, own, source)
    own_projection = group.projections[guidance_type] if guidance_type in group.projections else nn.Identity()
    load_strictly(own_projection, projection, f"{source} ({PROJECTION_PREFIX}*)")


def official_encoder_state(group: GuidanceEncoders, guidance_type: str) -> dict[str, Tensor]:
    """One type's encoder (and projection) in the official layout."""
    encoder = group.encoders[guidance_type]
    state = dict(encoder.state_dict())
    if isinstance(encoder, ImageGuidanceEncoder):
        prefix = _attention_prefix(encoder)
        state = {
            re.sub(r"^attention\.", prefix, key): value for key, value in state.items()
        } | encoder.unused_weights
    if guidance_type in group.projections:
        projection = group.projections[guidance_type].state_dict()
        state |= {f"{PROJECTION_PREFIX}{key}": value for key, value in projection.items()}
    return state


def _attention_prefix(encoder: ImageGuidanceEncoder) -> str:
    """The original numbers its attentions like its convolutions and runs the last one only."""
    return f"attentions.{len(encoder.blocks) - 1}."
