"""A trained model, ready to sample: its pipeline, its device, its precision, the size of its frames."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets.transforms import Size
from models import ChampModel, ModelError
from models.model_files import quiet_libraries
from system.errors import ConfigError

from .champ_pipeline import ChampPipeline

AUTOCAST_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def load_pipeline(model_path: str | Path) -> ChampPipeline:
    """Return the pipeline of a model folder. Raises ModelError when it is not one, or not whole."""
    quiet_libraries()
    path = Path(model_path)
    if not (path / "model_index.json").is_file():
        hint = f"; did you mean {path / 'final'}?" if (path / "final" / "model_index.json").is_file() else ""
        problem = "has no model_index.json" if path.is_dir() else "is no folder"
        expected = f"the final/ folder that training writes{hint}"
        raise ModelError(f"--model_path {path} {problem}: expected {expected}")
    model = ChampModel.from_pretrained(path)  # checks every key, which diffusers does not
    parts = {name: getattr(model, name) for name in ("unet", "reference_unet", "guidance_encoders")}
    try:
        return ChampPipeline.from_pretrained(path, **parts)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"--model_path {path} cannot be loaded: {reason}") from error


def choose_device(name: str | None, mixed_precision: str) -> torch.device:
    """Return the device. Raises ConfigError when it is not there, or cannot work in the precision."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: cannot be used here ({reason})") from None
    if mixed_precision == "fp16" and device.type == "cpu":
        raise ConfigError("--mixed_precision fp16 needs a GPU: use bf16 or no")
    return device


def autocast(device: torch.device, mixed_precision: str) -> contextlib.AbstractContextManager:
    """Return the context in which the model runs in --mixed_precision."""
    precision = AUTOCAST_TYPES.get(mixed_precision)
    return torch.autocast(device.type, precision) if precision else contextlib.nullcontext()


def frame_size(given: Sequence[int] | None, pipeline: ChampPipeline) -> Size:
    """Return (height, width) of the frames: --resolution, or the trained one. Raises ConfigError."""
    sides = given or [pipeline.config.height, pipeline.config.width]
    if None in sides:
        raise ConfigError("the model does not say at which resolution it was trained: give --resolution")
    factor = pipeline.frozen.latent_factor
    if any(side % factor for side in sides):
        raise ConfigError(f"--resolution {' '.join(map(str, sides))}: this model needs multiples of {factor}")
    return sides[0], sides[-1]
