"""What --dry_run prints: configuration, parameters, shapes of a batch, memory and disk, steps per epoch."""

import dataclasses
from collections.abc import Iterable

import torch
from omegaconf import OmegaConf
from torch import nn

from training.objective import DiffusionObjective
from training.settings.fields import TrainingArguments
from training.stages import parameters_by_part

from .step_simulation import MemoryUse, SimulationError, simulate_step

GIB = 2**30


def print_plan(
    arguments: TrainingArguments,
    model: nn.Module,
    frozen: nn.Module,
    batch: dict,
    *,
    objective: DiffusionObjective,
    device: torch.device,
    is_sharded: bool,
    num_clips: int,
    clips_per_step: int,
    num_steps: int,
    cache_bytes: dict[str, int],
) -> None:
    """Print the plan of a run on `device` to standard output; is_sharded: by FSDP."""
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
    if is_sharded:
        print("memory per process: not simulated for FSDP, whose processes share out what they hold")
    else:
        for line in memory_lines(arguments, model, frozen, batch, objective=objective, device=device):
            print(line)
    print(disk_line(arguments, model, frozen))
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


def memory_lines(
    arguments: TrainingArguments,
    model: nn.Module,
    frozen: nn.Module,
    batch: dict,
    *,
    objective: DiffusionObjective,
    device: torch.device,
) -> list[str]:
    """Return lines on the memory of a simulated training step, or on why there is no such figure."""

    def simulated(as_gpu: bool) -> MemoryUse:
        return simulate_step(model, frozen, objective, arguments, batch, device=device, as_gpu=as_gpu)

    try:
        use = simulated(as_gpu=False)
        if device.type == "cuda":
            beside = "besides: CUDA's own (about 0.5 GiB) and what its allocator cannot use (about a tenth)"
            return [f"memory per process, {described(use)}", beside]
        same = arguments.mixed_precision == "no" and not arguments.cache_latents
        on_gpu = use if same else simulated(as_gpu=True)
    except SimulationError as error:
        return [f"memory per process: no figure, a step of this run cannot be simulated ({error})"]
    return [
        f"memory per process, {described(use)}",
        "besides: Python and its packages (about 0.5 GiB), and what the allocator does not give back",
        f"the same on a GPU, {described(on_gpu)}",
    ]


def described(use: MemoryUse) -> str:
    parts = {
        "weights": use.weights, "gradients": use.gradients, "optimizer states and average": use.optimizer,
        "activations": use.activations,
    }  # fmt: skip
    shown = ", ".join(f"{part} {num_bytes / GIB:.2f}" for part, num_bytes in parts.items())
    return f"a training step simulated: {use.total / GIB:.2f} GiB at its peak, the {use.phase} (then {shown})"


def disk_line(arguments: TrainingArguments, model: nn.Module, frozen: nn.Module) -> str:
    """Return what checkpoints and the final model take on disk."""
    total = count_parameters(model.parameters())
    trained = count_parameters(parameter for parameter in model.parameters() if parameter.requires_grad)
    moments, average = 2 if arguments.use_8bit_adam else 8, 4 if arguments.use_ema else 0
    checkpoint = 4 * total + trained * (moments + average)
    final = 4 * (total + count_parameters(frozen.parameters()))
    kept = arguments.checkpoints_total_limit or "as many as are made (--checkpoints_total_limit)"
    return (
        f"disk: {checkpoint / GIB:.2f} GiB a checkpoint x {kept}, one more while saving; "
        f"{final / GIB:.2f} GiB for final/"
    )


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
