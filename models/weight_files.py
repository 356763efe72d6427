"""Files of weights, read without running any code of theirs; why one cannot be read, in words."""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from system.errors import ModelError

WEIGHT_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
IN_A_FOLDER = tuple(f"diffusion_pytorch_model{end}" for end in (".safetensors", ".fp16.safetensors", ".bin"))


class _LeftOut:
    """What stands for an object of a training program that a file holds beside its weights."""

    def __init__(self, *_: object) -> None:
        """Keep nothing: neither what the object is made of nor, as __setstate__, what it held."""

    __setstate__ = __init__


# Stable Diffusion's own .ckpt files are whole states of Lightning. None of this is imported or called: each
# name gives a `_LeftOut`.
_BESIDE_WEIGHTS = [
    (_LeftOut, name)
    for name in (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "numpy.dtypes.Float64DType",
        "_codecs.encode",
    )
]


# Of a text, the unpickler takes letters for its commands: they find no object where they look for one.
_UNREADABLE = (
    SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError,
    LookupError, TypeError, AttributeError,
)  # fmt: skip


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict of a .safetensors, .pth, .ckpt or .bin file, or of a diffusers model's folder."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = next((path / name for name in IN_A_FOLDER if (path / name).is_file()), path / IN_A_FOLDER[0])
    if not path.is_file():
        raise ModelError(f"{path} does not exist: expected a file of weights ({', '.join(WEIGHT_FILES)})")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_BESIDE_WEIGHTS):
            mapped = zipfile.is_zipfile(path)  # gigabytes that are not asked for stay in the file
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        raise ModelError(f"{path} cannot be read as model weights: {_unreadable(path, error)}") from error
    while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds a {type(state).__name__}, expected weights by name")
    return {_plain_name(key): value for key, value in state.items() if torch.is_tensor(value)}


def _plain_name(key: str) -> str:
    """Return a weight's name without what DistributedDataParallel and torch.compile put before it."""
    return re.sub(r"^((module|_orig_mod)\.)+", "", str(key))


def _unreadable(path: Path, error: Exception) -> str:
    """Return why a file of weights cannot be read, and what helps where that is known."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return reason_of(error)
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"
    if start.lstrip().startswith((b"<!", b"<html", b"<?xml")):
        return "it is a web page, not the weights: download it again (the site may ask to sign in)"
    if name := re.search(r"Unsupported (?:global|class)\S* (?:GLOBAL )?([\w.]+)", str(error)):
        return (
            f"it holds Python code to run ({name[1]}), not weights alone: take the .safetensors of this model"
        )
    if "incomplete" in str(error).lower() or "failed finding central directory" in str(error):
        return f"it is not whole ({reason_of(error)}): download it again"
    return reason_of(error)


def reason_of(error: Exception) -> str:
    """Return the first line of an exception's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
