"""One file that holds a whole Stable Diffusion model, or a VAE alone: recognised, converted by diffusers.

The configurations in stable_diffusion_15/ are what diffusers would ask the hub for. Weights are counted: one
too many or too few is a ModelError, and a file of another kind is called by its name.
"""

import re
from pathlib import Path

from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from system.errors import ModelError

from .weight_files import read_weights, reason_of

CONFIGURATIONS = Path(__file__).with_name("stable_diffusion_15")
CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
EXPECTED = {
    "unet": "a Stable Diffusion 1.5 checkpoint in one file, a folder in diffusers' layout or a hub id",
    "vae": "a VAE file, a Stable Diffusion 1.5 checkpoint that holds one, a folder or a hub id",
}

UNET_PREFIX = "model.diffusion_model."
_VAE_PREFIX = re.compile(r"^(first_stage_model|vae)\.")
# Beside them lie losses and averages.
_VAE_KEY = re.compile(r"^(encoder|decoder|quant_conv|post_quant_conv)\.")
_OLD_VAE_ATTENTION = {
    ".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0.",
}  # fmt: skip

_UNETS_BY_CHANNELS = {
    5: "a Stable Diffusion model for depth maps",
    7: "a Stable Diffusion upscaler",
    8: "an InstructPix2Pix model",
    9: "a Stable Diffusion model for inpainting",
}
_UNETS_BY_TEXT_WIDTH = {
    1024: "a Stable Diffusion 2.x model",
    1280: "a Stable Diffusion XL refiner",
    2048: "a Stable Diffusion XL model",
}
_KINDS = (  # what a key looks like, what such a file is; the first that fits
    (r"motion_modules.*lora", "a motion LoRA of AnimateDiff"),
    (r"lora_|\.lora\.|_lora\.|hada_w1|lokr_w1", "a LoRA, which changes a model and is none itself"),
    (r"^string_to_param|^emb_params$|^clip_[lg]$", "a textual inversion embedding"),
    (r"^control_model\.|controlnet_cond_embedding\.|input_hint_block\.", "a ControlNet"),
    (r"^conditioner\.", "a Stable Diffusion XL model"),
    (r"joint_blocks\.|double_blocks\.", "a Stable Diffusion 3 or Flux model"),
    (r"motion_modules\.", "a file of motion modules (--motion_module_path)"),
    (r"^(model\.diffusion_model\.)?input_blocks\.", "a bare UNet"),
    (r"^down_blocks\..*(attn|resnets)", "a bare UNet in diffusers' layout"),
    (r"^(encoder|decoder)\.layers\.\d+\.", "a tiny autoencoder (TAESD), which is read from its folder alone"),
    (r"^((first_stage_model|vae)\.)?(encoder|decoder)\.", "a bare VAE (--vae_model_name_or_path)"),
    (r"vision_model\.|^visual\.", "a CLIP image encoder, which is read from its folder alone"),
    (r"text_model\.", "a text encoder, which nothing here uses"),
)  # fmt: skip


def component_of_file(path: Path, name: str) -> nn.Module:
    """Return the component `name` ("unet", "vae") in float32 of what a checkpoint file holds."""
    if name not in CLASSES:
        problem = f"{path} is one file, and the {name} is read from a folder or the hub"
        raise ModelError(f"{problem}: give the folder that holds its config.json, or a hub id")
    find_part = _unet_part if name == "unet" else _vae_part
    # Not by torch_dtype, which warns of a cast that concerns no model here.
    part = {key: value.float() for key, value in find_part(read_weights(path), path).items()}
    model_class = CLASSES[name]
    with init_empty_weights():
        empty = model_class.from_config(model_class.load_config(CONFIGURATIONS, subfolder=name))
    if len(part) != len(empty.state_dict()):
        counts = f"{len(part)} weights of a {name} where Stable Diffusion 1.5 has {len(empty.state_dict())}"
        raise ModelError(f"{path} holds {counts}: it is another model, or not whole; {_expected(name)}")
    options = {"config": str(CONFIGURATIONS), "subfolder": name, "local_files_only": True}
    try:
        return model_class.from_single_file(part, **options)
    except (ValueError, RuntimeError, KeyError, AttributeError) as error:  # as conversion meets other keys
        problem = f"{path} holds no {name} of Stable Diffusion 1.5: {reason_of(error)}"
        raise ModelError(f"{problem}; {_expected(name)}") from error


def kind_of(state: dict[str, Tensor]) -> str:
    """Return what a file with these keys is, in words."""
    if f"{UNET_PREFIX}input_blocks.0.0.weight" in state and any(map(_VAE_PREFIX.match, state)):
        return "a whole Stable Diffusion model"
    for pattern, kind in _KINDS:
        if any(re.search(pattern, key) for key in state):
            return kind
    return f"no model known here (its keys: {', '.join(sorted(state)[:3]) or 'none'})"


def _expected(name: str) -> str:
    return f"expected {EXPECTED[name]}"


def _unet_part(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the UNet's weights, with their prefix. Averaged ones beside them (model_ema) are left out."""
    first = state.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    if first is None:
        raise ModelError(f"{path} is {kind_of(state)}; {_expected('unet')}")
    config = UNet2DConditionModel.load_config(CONFIGURATIONS, subfolder="unet")
    part = {key: value for key, value in state.items() if key.startswith(UNET_PREFIX)}
    text_widths = [value.shape[-1] for key, value in part.items() if key.endswith("attn2.to_k.weight")]
    text_width = text_widths[0] if text_widths else config["cross_attention_dim"]
    if first.shape[1] != config["in_channels"]:
        kind = _UNETS_BY_CHANNELS.get(first.shape[1], "another model")
        raise ModelError(f"{path} is {kind} ({first.shape[1]} input channels); {_expected('unet')}")
    if text_width != config["cross_attention_dim"]:
        kind = _UNETS_BY_TEXT_WIDTH.get(text_width, "another model")
        raise ModelError(f"{path} is {kind} (text embeddings {text_width} wide); {_expected('unet')}")
    return part


def _vae_part(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the VAE's weights without their prefix, under the original's names or diffusers'."""
    if any(key.startswith("conditioner.") for key in state):  # its VAE has another scale
        raise ModelError(f"{path} is a Stable Diffusion XL model; {_expected('vae')}")
    has_prefix = any(_VAE_PREFIX.match(key) for key in state)
    found = {_VAE_PREFIX.sub("", key): value for key, value in state.items()
             if not has_prefix or _VAE_PREFIX.match(key)}  # fmt: skip
    part = {key: value for key, value in found.items() if _VAE_KEY.match(key)}
    first = part.get("decoder.conv_in.weight")
    if first is None and any(key.startswith(UNET_PREFIX) for key in state):
        example = "--vae_model_name_or_path, for example stabilityai/sd-vae-ft-mse"
        raise ModelError(f"{path} holds no VAE: give one by {example}")
    if first is None:
        raise ModelError(f"{path} is {kind_of(state)}; {_expected('vae')}")
    channels = AutoencoderKL.load_config(CONFIGURATIONS, subfolder="vae")["latent_channels"]
    if first.shape[1] != channels:
        kind = f"a VAE with {first.shape[1]} latent channels, not Stable Diffusion 1.5's {channels}"
        raise ModelError(f"{path} is {kind}; {_expected('vae')}")
    for old, new in _OLD_VAE_ATTENTION.items():
        part = {key.replace(old, new): value for key, value in part.items()}
    return part
