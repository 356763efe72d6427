"""Adapters put on a model, scaled, merged into its weights. The layers are peft's, around the model's own."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from system.errors import ModelError

# The first three get adapters. The guidance encoders are small, and new ones start at zero: named, they train
# whole, and are saved whole beside the adapters.
LORA_PARTS = ("unet", "reference_unet", "motion", "guidance_encoders")
ADAPTED_COMPONENTS = ("unet", "reference_unet")  # of a ChampModel
MOTION = ".motion_modules."

# Attention and feed-forward projections of transformer blocks, motion modules' too.
_PROJECTION = re.compile(r"\.transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))")


@dataclass(frozen=True)
class LoraSettings:
    """A low-rank update alpha / rank * B A of each adapted layer; parts: some of LORA_PARTS."""

    rank: int
    alpha: float
    dropout: float = 0.0  # of the adapters' inputs, in training
    parts: tuple[str, ...] = ("unet", "reference_unet", "motion")

    @property
    def trains_encoders(self) -> bool:
        return "guidance_encoders" in self.parts


def add_lora(model: nn.Module, settings: LoraSettings, name: str = "default") -> None:
    """Put new adapters on a ChampModel, and let nothing train but them and, if named, the guidance encoders.

    Drawn from PyTorch's generator; they leave the model's output as it is. See `check_parts`.
    """
    targets = adapted_layers(model, settings.parts)
    if not targets:
        parts = ", ".join(settings.parts)
        raise ModelError(f"LoRA on {parts}: these are the identity, with no layer to adapt: name others too")
    for component in ADAPTED_COMPONENTS:
        names = [path.removeprefix(f"{component}.") for path in targets if path.startswith(f"{component}.")]
        if names:
            config = LoraConfig(
                r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
                target_modules=names,
            )  # fmt: skip
            inject(getattr(model, component), config, name)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(trains_with_lora(parameter_name, settings))


def trains_with_lora(parameter_name: str, settings: LoraSettings) -> bool:
    """Return whether a parameter of a model with adapters trains."""
    in_encoders = parameter_name.startswith("guidance_encoders.")
    return is_adapter_name(parameter_name) or (in_encoders and settings.trains_encoders)


def check_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Raise ModelError where adapters of these parts sit on something untrained, which no file has."""
    unknown = [part for part in parts if part not in LORA_PARTS]
    if unknown or not set(parts) - {"guidance_encoders"}:
        found = f"LoRA on {unknown[0]}" if unknown else "LoRA on no UNet"
        raise ModelError(f"{found}: name some of {', '.join(LORA_PARTS)}, one of the first three at least")
    if model.has_motion_modules and not any(MOTION in name for name in model.pretrained_names):
        raise ModelError(
            "LoRA on fresh motion modules, which it does not save: give trained ones (--motion_module_path, "
            "or --champ_checkpoint_dir with some), or --training_stage image"
        )
    if "guidance_encoders" in parts:
        return
    for guidance_type in model.guidance_encoders.guidance_types:
        prefix = f"guidance_encoders.encoders.{guidance_type}."
        own = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
        if own and not any(name in model.pretrained_names for name in own):
            raise ModelError(
                f"LoRA on an untrained guidance encoder ({guidance_type}), which it does not save: name "
                "guidance_encoders in --lora_parts too, or start from a model that has it "
                "(--champ_checkpoint_dir)"
            )


def adapted_layers(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """Return the names of a ChampModel's layers that adapters of these parts sit on.

    Layers that never get a gradient are left out, and motion modules that are the identity.
    """
    dead = {name.removesuffix(".weight") for name in model.untrainable_names}
    silent = tuple(f"{name}." for name in identity_modules(model))
    part_of = {"unet": "unet", "reference_unet": "reference_unet"}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _PROJECTION.search(name) and name not in dead
        if ("motion" if MOTION in name else part_of.get(name.split(".")[0])) in parts
        if not name.startswith(silent)
    ]


def identity_modules(model: nn.Module) -> list[str]:
    """Return the names of motion modules that give their input back: what a base without them is, too."""
    return [
        name
        for name, module in model.named_modules()
        if MOTION in name and name.rpartition(".")[0].endswith(MOTION.removesuffix("."))
        if not (module.proj_out.weight.is_meta or module.proj_out.weight.any() or module.proj_out.bias.any())
    ]


def inject(component: nn.Module, config: LoraConfig, name: str) -> None:
    """Put adapters under a name on a UNet, beside others that it has."""
    with warnings.catch_warnings():  # peft's, that there are several
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        inject_adapter_in_model(config, component, name)
    for layer in component.modules():
        if isinstance(layer, LoraLayer):
            # autocast casts what enters. A copy in the weights' type would be kept for the backward pass.
            layer.cast_input_dtype_enabled = False


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Yield (name, layer) of a ChampModel's layers that have adapters."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def has_lora(model: nn.Module) -> bool:
    return next(lora_layers(model), None) is not None


def check_merged(model: nn.Module) -> None:
    """Raise ModelError for a model with adapters: saved, it would be no model that can be loaded."""
    if has_lora(model):
        problem = "a model is not saved with adapters on it"
        raise ModelError(f"{problem}: merge them in first, by merge_lora or a pipeline's fuse_lora")


def lora_names(model: nn.Module) -> list[str]:
    """Return the names of a model's adapters."""
    return list(dict.fromkeys(name for _, layer in lora_layers(model) for name in layer.lora_A))


def is_adapter_name(parameter_name: str) -> bool:
    """Return whether a parameter of this name is an adapter's."""
    return ".lora_A." in parameter_name or ".lora_B." in parameter_name


def base_name(parameter_name: str) -> str:
    """Return the name that a parameter has in the model without adapters."""
    return parameter_name.replace(".base_layer.", ".")


def frozen_base_names(model: nn.Module) -> set[str]:
    """Return the UNets' parameters that adapters sit on or beside, and that are the base's: nobody need save
    them. None of a model without adapters."""
    if not has_lora(model):
        return set()
    return {
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and name.split(".")[0] in ADAPTED_COMPONENTS
        if base_name(name) in model.pretrained_names
    }


def lora_state(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Return {"unet.LAYER.lora_A.weight" or "... lora_B.weight": tensor}, diffusers' names."""
    return {
        f"{path}.{side}.weight": getattr(layer, side)[name].weight
        for path, layer in lora_layers(model)
        for side in ("lora_A", "lora_B")
        if name in layer.lora_A
    }


def set_lora_scales(model: nn.Module, scales: Mapping[str, float]) -> None:
    """Scale adapters {name: scale}; those not named are off. At 0 the base is as it was, bit for bit."""
    unknown = sorted(set(scales) - set(lora_names(model)))
    if unknown:
        raise ModelError(f"the model has no LoRA {unknown[0]!r}, it has {', '.join(lora_names(model))}")
    for _, layer in lora_layers(model):
        for name, scale in scales.items():
            layer.set_scale(name, scale)
        layer.set_adapter([name for name, scale in scales.items() if scale != 0], inference_mode=True)


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add the adapters, as scaled, to the weights that they sit on; the model is then an ordinary one."""
    for path, layer in list(lora_layers(model)):
        layer.merge()
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    for component in ADAPTED_COMPONENTS:
        if hasattr(getattr(model, component), "peft_config"):
            del getattr(model, component).peft_config
