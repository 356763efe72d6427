"""What a sampling pipeline is given: brought into one form, and checked against the model and each other."""

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from system.errors import ModelError


class FrameSource(Protocol):
    """Guidance of one clip that is read when it is asked for: `source[start:stop]` is a tensor [n, ...]."""

    shape: tuple[int, ...]  # [F, ...]

    def __getitem__(self, frames: slice) -> Tensor: ...


Guidance = dict[str, Tensor | FrameSource]  # by type: [B, F, ...] (of one clip also [F, ...]), or a source


def as_batch(reference_image, guidance: Guidance | Sequence[Guidance]):
    """Return (references, guidance) with a batch axis, which one image and its guidance come without."""
    if isinstance(reference_image, Tensor) and reference_image.ndim == 3:
        reference_image = reference_image[None]
    elif isinstance(reference_image, Image.Image):
        reference_image = [reference_image]
    else:
        return reference_image, guidance if isinstance(guidance, dict) else _stacked(guidance)
    return reference_image, {
        name: condition[None] if isinstance(condition, Tensor) else condition
        for name, condition in guidance.items()
    }


def _stacked(clips: Sequence[Guidance]) -> Guidance:
    """Return {type: [B, F, ...]} of B clips' {type: [F, ...]}. Raises ModelError where they do not fit."""
    for clip in clips[1:]:
        for name in {*clips[0], *clip}:
            if name not in clip or name not in clips[0] or clip[name].shape != clips[0][name].shape:
                problem = f"guidance of several clips: {name} is not the same in all of them"
                raise ModelError(f"{problem}; they need the same types, and as many frames")
    return {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]} if clips else {}


def num_clips_and_frames(condition: Tensor | FrameSource) -> tuple[int, int]:
    """Return (B, F) of one type's guidance."""
    clips, frames = condition.shape[:2] if isinstance(condition, Tensor) else (1, condition.shape[0])
    return clips, frames


def check_guidance(guidance: Guidance, num_clips: int, trained: Sequence[str]) -> int:
    """Return the number of frames. Raises ModelError for types that are not trained, and wrong lengths."""
    if not guidance:
        raise ModelError(f"no guidance: give at least one of the trained types ({', '.join(trained)})")
    unknown = [name for name in guidance if name not in trained]
    if unknown:
        raise ModelError(f"guidance type {unknown[0]!r}: the model was trained with {', '.join(trained)}")
    lengths = {name: num_clips_and_frames(condition) for name, condition in guidance.items()}
    if len(set(lengths.values())) > 1 or next(iter(lengths.values()))[0] != num_clips:
        found = ", ".join(f"{name} {clips} x {frames}" for name, (clips, frames) in lengths.items())
        expected = "every type needs as many clips as there are references, and one number of frames"
        problem = f"guidance of {found} (clips x frames) for {num_clips} reference images"
        raise ModelError(f"{problem}: {expected}")
    return next(iter(lengths.values()))[1]


def check_scales(scales: dict[str, float] | None, guidance: Guidance) -> dict[str, float]:
    """Return the scales that are not 0. Raises ModelError for a type that the clip has no guidance of."""
    for name in scales or {}:
        if name not in guidance:
            raise ModelError(f"guidance_scales of {name!r}: the guidance given is {', '.join(guidance)}")
    return {name: scale for name, scale in (scales or {}).items() if scale != 0}


def check_generators(generator: torch.Generator | list[torch.Generator] | None, num_videos: int) -> None:
    """Raise ModelError for a list of another length than there are videos to make."""
    if isinstance(generator, list) and len(generator) != num_videos:
        raise ModelError(f"{len(generator)} generators for {num_videos} videos: give one, or one for each")
