"""What --dry_run prints: configuration, parameters, shapes of a batch, memory and disk, steps per epoch."""

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from omegaconf import OmegaConf
from torch import nn

from caching.clip_caches import ClipCaches
from datasets import collate_clips
from models.lora import frozen_base_names, has_lora
from training.buckets.report import bucket_lines
from training.champ import ChampTask
from training.data import SampleSets
from training.execution.launch import Session
from training.settings.fields import RunSettings, TrainingArguments
from training.setup import clips_per_step, count_steps
from training.stages import parameters_by_part

from .step_simulation import MemoryUse, SimulationError, simulate_step

GIB = 2**30


def print_plan(arguments: TrainingArguments, task: ChampTask, session: Session, caches: ClipCaches) -> None:
    """Print the plan of a run to standard output; only the main process prints."""
    accelerator, data = session.accelerator, task.data
    if not accelerator.is_main_process:
        return
    parts = {part: list(some.values()) for part, some in parameters_by_part(task.model).items()}
    parts["vae"] = list(task.frozen.vae.parameters())
    parts["image_encoder"] = list(task.frozen.image_encoder.parameters())
    batch = print_outline(arguments, accelerator, data, parts)
    for line in bucket_lines(arguments, data, accelerator.num_processes):
        print(line)
    if session.is_sharded:
        print("memory per process: not simulated for FSDP, whose processes shard what they hold")
    else:
        for line in memory_lines(arguments, task, batch, accelerator.device):
            print(line)
    print(disk_line(arguments, task.model, [task.frozen]))
    if arguments.cache_latents:
        encoder = caches.feature_encoder(task.model, accelerator) if arguments.cache_features else None
        for title, num_bytes in caches.expected_bytes(encoder).items():
            print(f"disk: {num_bytes / GIB:.2f} GiB for the {title} of all training videos")


def print_outline(
    settings: RunSettings, accelerator: Accelerator, data: SampleSets, parts: dict[str, list[nn.Parameter]]
) -> dict:
    """Print configuration, {part: its parameters}, the shapes of a batch and steps; return the batch."""
    batch = collate_clips([data.train_set[data.largest]] * settings.train_batch_size)
    print(OmegaConf.to_yaml(OmegaConf.create(settings.offered())))
    print("parameters (millions)      trained     frozen")
    for part, parameters in parts.items():
        trained, total = count_trained(parameters), count_parameters(parameters)
        print(f"  {part:<20} {trained / 1e6:>11.3f} {(total - trained) / 1e6:>10.3f}")
    print("\none batch")
    for name, value in _shapes(batch):
        print(f"  {name:<20} {value}")
    num_clips, per_step = len(data.train_indices), clips_per_step(settings, accelerator.num_processes)
    num_steps = count_steps(settings, num_clips, accelerator.num_processes)
    print(
        f"\n{num_clips} {data.unit}s, {per_step} clips per step: {num_clips / per_step:g} steps per epoch, "
        f"{num_steps} steps = {num_steps * per_step / num_clips:.4g} epochs"
    )
    return batch


def _shapes(batch: dict, prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for name, value in batch.items():
        if isinstance(value, dict):
            lines += _shapes(value, f"{name}/")
        elif isinstance(value, torch.Tensor):
            lines.append((prefix + name, f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"))
    return lines


def memory_lines(
    arguments: TrainingArguments, task: ChampTask, batch: dict, device: torch.device
) -> list[str]:
    """Return lines on the memory of a simulated training step, or on why there is no such figure."""
    try:
        use = simulate_step(task, batch, device=device)
        if device.type == "cuda":
            beside = "besides: CUDA's own (about 0.5 GiB) and what its allocator cannot use (about a tenth)"
            return [f"memory per process, {described(use)}", beside]
        same = arguments.mixed_precision == "no" and not arguments.cache_latents
        on_gpu = use if same else simulate_step(task, batch, device=device, as_gpu=True)
    except SimulationError as error:
        return [f"memory per process: no figure, a step of this run cannot be simulated ({error})"]
    return [
        f"memory per process, {described(use)}",
        "besides: Python and its packages (about 0.5 GiB), and what the allocator does not give back",
        f"the same on a GPU, {described(on_gpu)}",
    ]


def described(use: MemoryUse) -> str:
    return (
        f"a training step simulated: {use.total / GIB:.2f} GiB at its peak, the {use.phase} "
        f"(then weights {use.weights / GIB:.2f}, gradients {use.gradients / GIB:.2f}, "
        f"optimizer states and average {use.optimizer / GIB:.2f}, activations {use.activations / GIB:.2f})"
    )


def state_line(settings: RunSettings, model: nn.Module) -> str:
    """Return the memory of what a run keeps from step to step, where no step is simulated."""
    kept = state_bytes(settings, model) + 4 * count_trained(model.parameters())
    return f"memory per process: {kept / GIB:.2f} GiB of weights, gradients and optimizer, and a step's own"


def state_bytes(settings: RunSettings, model: nn.Module) -> int:
    """Return the bytes of weights, optimizer states and averages: those of a checkpoint."""
    left_out, trained = frozen_base_names(model), count_trained(model.parameters())
    total = count_parameters(one for name, one in model.named_parameters() if name not in left_out)
    moments, average = 2 if settings.use_8bit_adam else 8, 4 if settings.use_ema else 0
    return 4 * total + trained * (moments + average)


def disk_line(settings: RunSettings, model: nn.Module, frozen: Sequence[nn.Module] = ()) -> str:
    """Return what checkpoints and the final model take on disk."""
    checkpoint = state_bytes(settings, model)
    final = 4 * sum(count_parameters(part.parameters()) for part in (model, *frozen))
    if has_lora(model):
        final = 4 * count_trained(model.parameters())
    kept = settings.checkpoints_total_limit or "as many as are made (--checkpoints_total_limit)"
    best = " and checkpoint-best" if settings.keep_best else ""
    return (
        f"disk: {checkpoint / GIB:.2f} GiB per checkpoint x {kept}{best}, one more while saving; "
        f"{final / GIB:.2f} GiB for final/"
    )


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def count_trained(parameters: Iterable[nn.Parameter]) -> int:
    return count_parameters(parameter for parameter in parameters if parameter.requires_grad)
