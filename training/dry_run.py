"""What --dry_run prints: configuration, parameters, shapes of a batch, memory and disk, steps per epoch."""

import dataclasses
from collections.abc import Iterable

import torch
from omegaconf import OmegaConf
from torch import nn

from .settings import TrainingArguments
from .stages import parameters_by_part

GIB = 2**30
# Measured at SD 1.5's width: saved activations of 24 frames at 512 in bf16, everything trained.
MEASURED_LATENT_PIXELS = 24 * 64 * 64
MEASURED_WIDTH = 320
# By --gradient_checkpointing; selective is counted on meta tensors, in proportion to "none".
MEASURED_GIB = {"none": 38.5, "selective": 15.7, "all": 4.0}


def print_plan(
    arguments: TrainingArguments,
    model: nn.Module,
    frozen: nn.Module,
    batch: dict,
    *,
    num_clips: int,
    clips_per_step: int,
    num_steps: int,
    cache_bytes: dict[str, int],
) -> None:
    """Print the plan of a run to standard output."""
    print(OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(arguments))))
    print("parameters (millions)      trained     frozen")
    parts = {part: list(parameters.values()) for part, parameters in parameters_by_part(model).items()}
    for part, parameters in {
        **parts,
        "vae": list(frozen.vae.parameters()),
        "image_encoder": list(frozen.image_encoder.parameters()),
    }.items():
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        still = [parameter for parameter in parameters if not parameter.requires_grad]
        print(f"  {part:<20} {count_parameters(trained) / 1e6:>11.3f} {count_parameters(still) / 1e6:>10.3f}")
    print("\none batch")
    for name, value in _shapes(batch):
        print(f"  {name:<20} {value}")
    print(
        f"\n{num_clips} videos, {clips_per_step} clips a step: "
        f"{num_clips / clips_per_step:g} steps an epoch, "
        f"{num_steps} steps = {num_steps * clips_per_step / num_clips:.4g} epochs"
    )
    for line in estimate(arguments, model, frozen, batch["frames"].shape):
        print(line)
    for title, num_bytes in cache_bytes.items():
        print(f"disk: {num_bytes / GIB:.2f} GiB for the {title} of all training videos")


def _shapes(batch: dict, prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for name, value in batch.items():
        if isinstance(value, dict):
            lines += _shapes(value, f"{name}/")
        elif isinstance(value, torch.Tensor):
            lines.append((prefix + name, f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"))
    return lines


def estimate(arguments: TrainingArguments, model: nn.Module, frozen: nn.Module, frames_shape) -> list[str]:
    """Return lines on memory and disk; weights are counted, activations scaled from a measurement."""
    total = count_parameters(model.parameters())
    trained = count_parameters(parameter for parameter in model.parameters() if parameter.requires_grad)
    adam_bytes = 2 if arguments.use_8bit_adam else 8
    ema_bytes = 4 if arguments.use_ema else 0
    states = 4 * total + trained * (4 + adam_bytes + ema_bytes)
    half = arguments.mixed_precision != "no"
    states += count_parameters(frozen.parameters()) * (2 if half else 4)
    if half:
        states += 2 * trained  # autocast keeps a copy of the trained weights through a forward pass
    if arguments.use_ema and not arguments.set_grads_to_none:
        states += 4 * trained  # what the average's update takes besides gradients that stay

    batch, num_frames, _, height, width = frames_shape
    latent_pixels = batch * num_frames * (height // frozen.latent_factor) * (width // frozen.latent_factor)
    kind = arguments.gradient_checkpointing
    scale = latent_pixels / MEASURED_LATENT_PIXELS * model.unet.config.block_out_channels[0] / MEASURED_WIDTH
    activations = MEASURED_GIB[kind] * scale * (1 if half else 2)

    checkpoint = 4 * total + trained * (adam_bytes + ema_bytes)
    final = 4 * (total + count_parameters(frozen.parameters()))
    share = MEASURED_GIB["all"] / MEASURED_GIB[kind]
    hint = "" if kind == "all" else f" ({share:.0%} of it with --gradient_checkpointing all)"
    kept = arguments.checkpoints_total_limit or "as many as are made (--checkpoints_total_limit)"
    return [
        f"memory per process, about: {states / GIB:.2f} GiB of weights, gradients and optimizer "
        f"+ {activations:.2f} GiB of activations{hint}",
        f"disk: {checkpoint / GIB:.2f} GiB a checkpoint x {kept}, one more while saving; "
        f"{final / GIB:.2f} GiB for final/",
    ]


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
