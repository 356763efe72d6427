"""A trained model, ready to sample: its pipeline, its device, its precision, the size of its frames."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets.guidance.files import load_json
from datasets.transforms import Size
from models import ChampModel, ModelError, MusicToPoseModel
from models.lora import LORA_FILE, WrongBaseError
from models.model_files import load_component, quiet_libraries
from system.errors import ConfigError

from .champ_pipeline import ChampPipeline
from .music_to_pose_pipeline import MusicToPosePipeline
from .saved_pipeline import SavedPipeline

# diffusers' names, of whole and of sharded files: group 1 is the variant, None without one.
_VARIANT_FILE = re.compile(r"diffusion_pytorch_model(?:\.([^.-]+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
AUTOCAST_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def load_pipeline(model_path: str | Path, variant: str | None = None) -> ChampPipeline:
    """Return the pipeline of a model folder. Raises ModelError when it is not one, or not whole.

    variant: of the weights' files ("fp16"); the only one there is taken by itself.
    """
    path = _model_folder("--model_path", model_path)
    variant = variant or _only_variant(path)
    model = ChampModel.from_pretrained(path, variant=variant)  # checks every key, which diffusers does not
    parts = {name: getattr(model, name) for name in ("unet", "reference_unet", "guidance_encoders")}
    return _load("--model_path", ChampPipeline, path, parts | {"variant": variant})


def add_adapters(
    pipeline: ChampPipeline, model_path: str | Path, adapters: Sequence[tuple[str, float]]
) -> None:
    """Put the adapters of `lora_scales` on the model of --model_path. Raises ModelError."""
    if adapters:
        try:
            pipeline.load_lora_weights(*map(list, zip(*adapters, strict=True)))
        except WrongBaseError as error:
            raise WrongBaseError(f"--model_path {model_path}: {error}") from None


def load_music_to_pose(flag: str, model_path: str | Path) -> MusicToPosePipeline:
    """Return the pipeline of the folder that a flag names. Raises ModelError as load_pipeline does."""
    path = _model_folder(flag, model_path)
    kind = load_json(path / "model_index.json")
    if not isinstance(kind, dict) or kind.get("_class_name") != MusicToPosePipeline.__name__:
        expected = "expected the final/ folder that train_music_to_pose.py writes"
        raise ModelError(f"{flag} {path} holds another kind of model: {expected}")
    model = load_component(lambda: MusicToPoseModel, path, "model")
    return _load(flag, MusicToPosePipeline, path, {"model": model})


def _only_variant(path: Path) -> str | None:
    """Return the variant of a model folder's weights, None where they have none, or several."""
    files = [file.name for file in (path / "unet").glob("diffusion_pytorch_model*")]
    found = {match[1] for match in map(_VARIANT_FILE.fullmatch, files) if match}
    return found.pop() if len(found) == 1 else None


def _model_folder(flag: str, model_path: str | Path) -> Path:
    quiet_libraries()
    path = Path(model_path)
    if not (path / "model_index.json").is_file():
        hint = f"; did you mean {path / 'final'}?" if (path / "final" / "model_index.json").is_file() else ""
        if (path / LORA_FILE).is_file():
            hint = "; it holds adapters: give it as --lora, and what they were trained on as --model_path"
        problem = "has no model_index.json" if path.is_dir() else "is no folder"
        expected = f"the final/ folder that training writes{hint}"
        raise ModelError(f"{flag} {path} {problem}: expected {expected}")
    return path


def _load(flag: str, pipeline_class: type[SavedPipeline], path: Path, parts: dict) -> SavedPipeline:
    try:
        return pipeline_class.from_pretrained(path, **parts)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{flag} {path} cannot be loaded: {reason}") from error


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
