"""Files of adapters, in diffusers' form: what it sits on is in the file, too, as digests."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.guidance_group import GuidanceEncoders
from models.model_files import load_component
from system.errors import ModelError

from .adapters import ADAPTED_COMPONENTS, inject, lora_names, lora_state, set_lora_scales
from .base import base_digest

LORA_FILE = "pytorch_lora_weights.safetensors"
ENCODERS_FOLDER = "guidance_encoders"  # beside it, where they were trained too
NOT_AS_DESCRIBED = "its weights are not those that its configuration describes: it is broken, take another"
CONFIG_KEY, BASE_KEY = "lora_adapter_metadata", "base_digest"  # the first is diffusers'


def save_lora(
    model: nn.Module, folder: str | Path, name: str = "default", *, whole_encoders: bool = False
) -> None:
    """Write a model's adapters of a name into a folder; whole_encoders: the guidance encoders beside them."""
    state = {key: value.detach().cpu().contiguous() for key, value in lora_state(model, name).items()}
    base = base_digest(model)
    if whole_encoders:
        base = {part: known for part, known in base.items() if not part.startswith("guidance_encoders.")}
        model.guidance_encoders.save_pretrained(Path(folder, ENCODERS_FOLDER))
    metadata = {
        "format": "pt",
        CONFIG_KEY: json.dumps(_configs(model, name), indent=2, sort_keys=True),
        BASE_KEY: json.dumps(base),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(state, Path(folder, LORA_FILE), metadata=metadata)


def lora_file(path: str | Path) -> Path:
    """Return the file of a LoRA that is given as itself or as its folder. Raises ModelError."""
    path = Path(path).expanduser()
    file = path / LORA_FILE if path.is_dir() else path
    if not file.is_file():
        hint = f"; did you mean {path / 'final'}?" if (path / "final" / LORA_FILE).is_file() else ""
        raise ModelError(f"LoRA {path}: no {LORA_FILE}: give the final/ of a run with --lora_rank{hint}")
    return file


def load_lora(
    model: nn.Module, path: str | Path, scale: float = 1.0, name: str = "default",
    *, base: Mapping[str, dict] | None = None,
) -> None:  # fmt: skip
    """Put the adapters of a file or folder on a float32 ChampModel, beside those that it has, scaled.

    Guidance encoders that lie beside them take the place of the model's own, unless the scale is 0.
    `base` is `base_digest(model)` where it is known. Raises ModelError for another base than the file's.
    """
    file = lora_file(path)
    state, configs, expected = _read(file)
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        problem = f"{len(broken)} of its weights hold NaN or infinity, {broken[0]} for one"
        raise ModelError(f"LoRA {file}: {problem}: it is broken, take another")
    check_base(file, expected, base if base is not None else base_digest(model))
    if name in lora_names(model):
        raise ModelError(f"LoRA {path}: the model has one of the name {name!r}: give another name")
    scales = {known: _scale_of(model, known) for known in lora_names(model)}
    for component, config in configs.items():
        try:
            inject(getattr(model, component), config, name)
        except ValueError as error:  # peft's, that none of its layers is there
            raise ModelError(f"LoRA {file}: {NOT_AS_DESCRIBED}") from error
    own = lora_state(model, name)
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in state.items()}:
        raise ModelError(f"LoRA {file}: {NOT_AS_DESCRIBED}")
    for key, parameter in own.items():
        parameter.data.copy_(state[key])
    encoders = file.parent / ENCODERS_FOLDER
    if scale != 0 and encoders.is_dir():
        saved = load_component(lambda: GuidanceEncoders, file.parent, ENCODERS_FOLDER)
        model.guidance_encoders.take_over(saved)
    set_lora_scales(model, scales | {name: scale})
    model.requires_grad_(False)


def load_loras(model: nn.Module, paths: Sequence[str | Path], scales: Sequence[float]) -> list[str]:
    """Put several LoRAs on a float32 ChampModel, each with its scale; return the names that they get."""
    base, names = base_digest(model), []
    with_encoders = [path for path, scale in zip(paths, scales, strict=True)
                     if scale != 0 and (lora_file(path).parent / ENCODERS_FOLDER).is_dir()]  # fmt: skip
    if len(with_encoders) > 1:
        both = f"{with_encoders[0]} and {with_encoders[1]}: each brings guidance encoders of its own"
        raise ModelError(f"LoRA {both}: leave one out, or scale it 0")
    for place, (path, scale) in enumerate(zip(paths, scales, strict=True)):
        names.append(f"lora_{place}")
        load_lora(model, path, scale, names[-1], base=base)
    return names


class WrongBaseError(ModelError):
    """A LoRA is put on another model than it was trained on."""


def check_base(path: Path, expected: Mapping[str, dict], found: Mapping[str, dict]) -> None:
    """Raise WrongBaseError where a model is not the one that a LoRA was trained on."""
    for part, known in expected.items():
        own = found.get(part)
        if own is None:
            fault = f"has no {part}"
        elif own["num_values"] != known["num_values"]:
            fault = f"has a {part} of {own['num_values']:,} numbers, not {known['num_values']:,}"
        elif own["digest"] != known["digest"]:
            fault = f"has other weights in its {part}"
        else:
            continue
        raise WrongBaseError(f"LoRA {path}: was trained on another base: this model {fault}: give that base")


def _scale_of(model: nn.Module, name: str) -> float:
    """Return the scale of a model's adapters of a name, 0 where they are off."""
    layers = (module for module in model.modules() if name in getattr(module, "lora_A", ()))
    layer = next(layers)
    is_on = name in layer.active_adapters
    return layer.scaling[name] * layer.r[name] / layer.lora_alpha[name] if is_on else 0.0


def _configs(model: nn.Module, name: str) -> dict[str, object]:
    """Return peft's configuration of each adapted component, {"unet.r": 4, ...} as diffusers has it."""
    components = [(one, getattr(getattr(model, one), "peft_config", {})) for one in ADAPTED_COMPONENTS]
    return {
        f"{component}.{key}": sorted(value) if isinstance(value, set) else value
        for component, configs in components
        if name in configs
        for key, value in configs[name].to_dict().items()
    }


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, LoraConfig], dict[str, dict]]:
    """Return a file's weights, {component: configuration} and digests of its base. Raises ModelError.

    Of the configuration only what training sets: another version of peft writes other fields, too.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            metadata = handle.metadata() or {}
            state = {key: handle.get_tensor(key).to(torch.float32) for key in handle.keys()}
        flat, base = json.loads(metadata[CONFIG_KEY]), json.loads(metadata[BASE_KEY])
        base = {part: {key: known[key] for key in ("digest", "num_values")} for part, known in base.items()}
        configs: dict[str, dict] = {}
        for key, value in flat.items():
            component, _, field = key.partition(".")
            if component not in ADAPTED_COMPONENTS:
                raise KeyError(component)
            configs.setdefault(component, {})[field] = value
        configs = {name: _lora_config(config) for name, config in configs.items()}
    except KeyError as error:
        problem = f"it has no {error} that this trainer writes"
        raise ModelError(f"LoRA {file}: {problem}: give the final/ of a run with --lora_rank") from error
    except (SafetensorError, OSError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"LoRA {file}: cannot be read: {reason}: copy it again") from error
    return state, configs, base


def _lora_config(fields: Mapping[str, object]) -> LoraConfig:
    """Return peft's configuration from the fields of a file. Raises KeyError, ValueError or TypeError."""
    rank, layers = fields["r"], fields["target_modules"]
    alpha, dropout = float(fields["lora_alpha"]), float(fields["lora_dropout"])
    if not (isinstance(rank, int) and rank > 0 and 0 < alpha < math.inf and 0 <= dropout < 1):
        raise ValueError(f"rank {rank}, alpha {alpha:g} and dropout {dropout:g} are no adapter's")
    if not (isinstance(layers, list) and layers and all(isinstance(layer, str) for layer in layers)):
        raise ValueError("target_modules is no list of layers")
    return LoraConfig(r=rank, lora_alpha=fields["lora_alpha"], lora_dropout=dropout, target_modules=layers)
