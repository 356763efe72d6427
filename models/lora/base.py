"""Digests of what adapters sit on, part by part, so that they are not put on other weights."""

import hashlib

import torch
from torch import Tensor, nn

from .adapters import MOTION, base_name, identity_modules, is_adapter_name


def base_digest(model: nn.Module) -> dict[str, dict]:
    """Return {part: {"digest", "num_values"}} of a ChampModel's weights, adapters left out.

    They are rounded to float16: a base and what is saved of it in half precision (variant fp16) are the same.
    Parts are unet, motion_modules, reference_unet and guidance_encoders.TYPE; motion modules that are the
    identity count for none, so that the image stage's model and a model with fresh ones are the same base.
    """
    silent, parts = tuple(f"{name}." for name in identity_modules(model)), {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not is_adapter_name(name) and not name.startswith(silent):
            parts.setdefault(_part_of(name), []).append(tensor)
    return {
        part: {"digest": _digest(tensors), "num_values": sum(tensor.numel() for tensor in tensors)}
        for part, tensors in sorted(parts.items())
    }


def _part_of(name: str) -> str:
    component, _, *rest = base_name(name).split(".")
    if component == "guidance_encoders":  # .encoders.TYPE and .projections.TYPE
        return f"{component}.{rest[0]}"
    return "motion_modules" if MOTION in name else component


def _digest(tensors: list[Tensor]) -> str:
    """Return a digest of the values alone, whatever their names and order: those are a library's."""
    digests = (hashlib.blake2b(_bytes_of(tensor), digest_size=16).digest() for tensor in tensors)
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()


def _bytes_of(tensor: Tensor):
    # A copy: FSDP frees the memory of weights, which it cannot once NumPy has seen it.
    tensor = tensor.detach().to("cpu", torch.float16, copy=True)
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
