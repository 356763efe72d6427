"""Which parameters train in which stage, as a table, and the optimizer groups that follow from it."""

from dataclasses import dataclass

from torch import nn

from models.lora import LoraSettings, add_lora

from .settings.fields import AdapterSettings

PARTS = ("denoising_unet", "motion_modules", "reference_unet", "guidance_encoders")


LORA_PART_OF = {
    "denoising_unet": "unet", "motion_modules": "motion", "reference_unet": "reference_unet",
    "guidance_encoders": "guidance_encoders",
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One line of the table: is the model built with motion modules, and which of its parts train."""

    has_motion_modules: bool
    trained_parts: tuple[str, ...]


# CHAMP trains `image`, then `motion`; `joint` trains both at once, from weights that know images already.
STAGES = {
    "joint": Stage(has_motion_modules=True, trained_parts=PARTS),
    "image": Stage(
        has_motion_modules=False, trained_parts=("denoising_unet", "reference_unet", "guidance_encoders")
    ),
    "motion": Stage(has_motion_modules=True, trained_parts=("motion_modules",)),
}


def parameters_by_part(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Return {part: {name: parameter}} over all parameters of a ChampModel."""
    motion_names = set(model.motion_parameter_names())
    prefixes = {
        "unet": "denoising_unet",
        "reference_unet": "reference_unet",
        "guidance_encoders": "guidance_encoders",
    }
    parts = {part: {} for part in PARTS}
    for name, parameter in model.named_parameters():
        part = "motion_modules" if name in motion_names else prefixes[name.split(".")[0]]
        parts[part][name] = parameter
    return parts


def lora_settings(settings: AdapterSettings, stage: Stage) -> LoraSettings | None:
    """Return what adapters a stage trains, or None where it trains the weights themselves."""
    if settings.lora_rank is None:
        return None
    parts = settings.lora_parts or [part for part in lora_parts(stage) if part != "guidance_encoders"]
    alpha = settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha
    return LoraSettings(settings.lora_rank, alpha, settings.lora_dropout, tuple(parts))


def lora_parts(stage: Stage) -> list[str]:
    """Return the parts that --lora_parts may name in a stage."""
    return [LORA_PART_OF[part] for part in stage.trained_parts]


def freeze_for_stage(model: nn.Module, stage: Stage, lora: LoraSettings | None = None) -> None:
    """Leave requires_grad on what trains in `stage`; what can never receive a gradient is frozen in all.

    With `lora` new adapters train, and nothing that they sit on.
    """
    untrainable = set(model.untrainable_names)
    for part, parameters in parameters_by_part(model).items():
        for name, parameter in parameters.items():
            parameter.requires_grad_(part in stage.trained_parts and name not in untrainable)
    if lora is not None:
        add_lora(model, lora)


def trained_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return {part: its trained parameters} of the parts that train."""
    parts = {
        part: [parameter for parameter in parameters.values() if parameter.requires_grad]
        for part, parameters in parameters_by_part(model).items()
    }
    return {part: parameters for part, parameters in parts.items() if parameters}


def optimizer_groups(model: nn.Module, learning_rate: float, pretrained_lr_scale: float) -> list[dict]:
    """Return AdamW's groups: new weights at `learning_rate`, pretrained ones at a fraction of it.

    Adapters are new weights, whatever they sit on.
    """
    pretrained = set(model.pretrained_names)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = [
        {"params": [trained[name] for name in trained if name not in pretrained], "lr": learning_rate},
        {
            "params": [trained[name] for name in trained if name in pretrained],
            "lr": learning_rate * pretrained_lr_scale,
        },
    ]
    return [group for group in groups if group["params"]]
