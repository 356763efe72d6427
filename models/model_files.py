"""Components and weight files on disk or on the hub: found, read into float32, checked against the model.

Every loader checks the keys: a missing or unexpected one is a ModelError unless the caller names it.
"""

import logging
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from system.errors import ModelError

from .single_file import component_of_file
from .weight_files import WEIGHT_FILES, reason_of

logger = logging.getLogger(__name__)

# The repository that the documented launch names was taken down; the same files live on here.
RENAMED_HUB_IDS = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
# Beginnings of names in a whole CLIP model (openai/clip-vit-large-patch14), beside its image encoder.
TEXT_OF_CLIP = ("text_model.", "text_projection.", "logit_scale")
KEY_PROBLEMS = ("missing", "unexpected", "of another shape")


def local_component(source: str | Path, name: str) -> tuple[str, str | None]:
    """Return (folder or hub id, subfolder) of a component; `source` may be the component's own folder.

    Of a file of weights, its path and `name`. Raise ModelError when `source` looks like a local path and does
    not exist.
    """
    source = str(source)
    if source in RENAMED_HUB_IDS and not Path(source).exists():
        logger.warning("%s is gone from the hub: taking %s", source, RENAMED_HUB_IDS[source])
        return RENAMED_HUB_IDS[source], name
    folder = Path(source).expanduser()
    if folder.is_dir():
        for subfolder in (name, None):
            if (folder / (subfolder or "") / "config.json").is_file():
                return str(folder), subfolder
        # In the hub's own cache, and where an archive made one folder more, the model lies deeper.
        deeper = sorted(path.parents[1] for path in folder.glob(f"*/{name}/config.json"))
        deeper += sorted(path.parents[1] for path in folder.glob(f"snapshots/*/{name}/config.json"))
        fix = f"give {deeper[-1]}" if deeper else "expected a Stable Diffusion folder in diffusers' layout"
        raise ModelError(f"{folder} has no {name}/config.json: {fix}")
    if folder.is_file() and folder.suffix.lower() in WEIGHT_FILES:
        return str(folder), name
    # "models/sd15" could be a hub id; where a folder "models" exists here it is a path.
    is_in_local_folder = len(folder.parts) > 1 and folder.parent.is_dir()
    if is_in_local_folder or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", source) or folder.exists():
        problem = f"{source} is no file of weights" if folder.is_file() else f"{source} does not exist"
        files = ", ".join(WEIGHT_FILES)
        expected = f"a Stable Diffusion folder, a file on this machine ({files}) or a hub id"
        raise ModelError(f"{problem}: expected {expected}")
    return source, name


def load_component(
    choose_class: Callable[[], type],
    source: str | Path,
    subfolder: str | None,
    *,
    revision: str | None = None,
    variant: str | None = None,
) -> nn.Module:
    """Return a diffusers or transformers model in float32, whatever the precision of its files.

    Of a file with a whole Stable Diffusion model, its component `subfolder`; of a whole CLIP model, the image
    encoder.
    """
    if Path(source).is_file():
        model = component_of_file(Path(source), subfolder)
        align_weights(model)
        return model
    place = f"{source}/{subfolder}" if subfolder else str(source)
    options = {"revision": revision, "variant": variant, "output_loading_info": True}
    options |= {} if subfolder is None else {"subfolder": subfolder}
    try:
        model_class = choose_class()
        is_clip = issubclass(model_class, transformers.PreTrainedModel)
        if is_clip:
            options["ignore_mismatched_sizes"] = True  # they are named below; its own error does not
        model, info = model_class.from_pretrained(str(source), torch_dtype=torch.float32, **options)
    except ModelError:
        raise
    except (OSError, SafetensorError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = reason_of(error) + _hint(source, subfolder, variant)
        raise ModelError(f"{place} cannot be loaded: {reason}") from error
    mismatched = map(str, info["mismatched_keys"])  # names, or names with shapes
    unexpected = [key for key in info["unexpected_keys"] if not (is_clip and key.startswith(TEXT_OF_CLIP))]
    _raise_for_keys(place, info["missing_keys"], unexpected, mismatched)
    align_weights(model)
    return model


def align_weights(module: nn.Module) -> None:
    """Move weights that are mapped from a file to memory of their own.

    In a file they begin at any byte, where CPU kernels round differently: without this a saved and loaded
    model would not give the same bits as the model that was saved.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _hint(source: str | Path, subfolder: str | None, variant: str | None) -> str:
    if not Path(source).is_dir():
        another = "; --image_encoder_name_or_path takes a folder too" if subfolder == "image_encoder" else ""
        return f" (it is no folder here, so it was looked for on the Hugging Face hub{another})"
    if variant is None and list(Path(source, subfolder or "").glob("*.fp16.*")):
        return " (its weights are the fp16 variant: add --variant fp16)"
    return ""


def load_strictly(
    module: nn.Module, state: dict[str, Tensor], source: str | Path, may_miss: Iterable[str] = ()
) -> None:
    """Load `state` into `module`. Raise ModelError for missing keys (but those with a prefix in
    `may_miss`), unexpected ones and other shapes."""
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(tuple(may_miss))]
    unexpected = [key for key in state if key not in own]
    mismatched = [
        f"{key} {list(value.shape)} instead of {list(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    _raise_for_keys(source, missing, unexpected, mismatched)
    module.load_state_dict(own | state)


def _raise_for_keys(source: str | Path, *key_lists: Iterable[str]) -> None:
    """Raise ModelError for keys that are missing, unexpected or of another shape (lists in this order)."""
    found = [
        f"{len(keys)} keys {problem} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for problem, keys in zip(KEY_PROBLEMS, map(sorted, key_lists), strict=True)
        if keys
    ]
    if found:
        raise ModelError(f"{source} does not fit the model: {'; '.join(found)}")


def quiet_libraries() -> None:
    """Turn off the bars for reading and writing small files, which tear our own; downloads keep theirs."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
