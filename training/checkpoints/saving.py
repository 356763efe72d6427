"""Checkpoints to resume from, saved and loaded.

A checkpoint holds accelerate's state (weights, optimizer, scaler), the averaged weights and the position in
the data. `folders.py` sees to it that it is whole or absent.
"""

import json
import pickle
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import SAFE_WEIGHTS_NAME, SCALER_NAME
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from system.errors import ConfigError, SaveError
from system.whole_files import remove
from training.execution.sharding import as_share, is_sharded, own_share, share_of, whole_on_main
from training.faults import is_out_of_memory
from training.optimization import trained_parameters

from .folders import (
    BEST_NAME,
    STATE_FILE,
    checkpoint_folders,
    fault_of,
    file_sizes,
    list_checkpoints,
    written_aside,
)

EMA_FILE = "ema.safetensors"
LOAD_ERRORS = (
    RuntimeError, ValueError, KeyError, OSError, EOFError, pickle.UnpicklingError, SafetensorError
)  # fmt: skip


@dataclass
class TrainerState:
    """Where a run is: all that is not a tensor. `samples_seen` is the position in the stream of samples."""

    step: int = 0
    samples_seen: int = 0
    steps_skipped: int = 0
    clips_per_step: int = 0  # over all processes; 0 is not known
    frozen_digests: dict = field(default_factory=dict)  # {part that never trains: digest}; empty is not known
    settings: dict = field(default_factory=dict)
    last_values: dict = field(default_factory=dict)  # {curve: its value at the last validation}
    best: dict = field(default_factory=dict)  # of checkpoint-best alone: {metric: its value}


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    state: TrainerState,
    ema: EMAModel | None,
    *,
    limit: int | None = None,
) -> Path:
    """Write output_dir/checkpoint-STEP, or checkpoint-best where the state says so; return its path.

    Every process calls it: the main one writes what is shared, each its own random state. `limit` is the
    number of checkpoints to keep. Raises SaveError in every process when it cannot be written; nothing else
    is lost.
    """
    path, averages = output_dir / (BEST_NAME if state.best else f"checkpoint-{state.step}"), []
    if ema is not None:
        shares = zip(ema.shadow_params, _trained(accelerator), strict=True)
        averages = [whole_on_main(as_share(shadow, parameter)) for shadow, parameter in shares]
    with _bare_weights(accelerator), written_aside(accelerator, path, _num_bytes(accelerator, ema)) as save:
        save(lambda aside: accelerator.save_state(str(aside)))
        save(lambda aside: _save_rest(aside, state, averages, ema), main_only=True)
    if accelerator.is_main_process and limit is not None:
        for old in list_checkpoints(output_dir)[:-limit]:
            remove(old)
    accelerator.wait_for_everyone()
    return path


def save_or_say(save: Callable[[], Path], *, may_go_on: bool = True) -> str:
    """Call `save`, which writes a checkpoint; return a line for the user, also when it failed.

    Raises SaveError instead when the run may not go on.
    """
    try:
        return f"saved {save()}"
    except SaveError as error:
        if not may_go_on:
            raise
        return f"warning: {error}; make room: the next try is at the next checkpoint, or at the end"


@contextmanager
def saved_on_failure(save: Callable[[], Path], output_dir: Path, step: int, say: Callable[[str], None]):
    """Save a checkpoint when the block's own saving fails, so that the same command can do the rest later."""
    try:
        yield
    except SaveError as error:
        if all(other != step for other, _ in checkpoint_folders(output_dir)):
            say(save_or_say(save))
        saved = list_checkpoints(output_dir)
        rest = f"goes on from {saved[-1].name}" if saved else "starts again, for no checkpoint could be saved"
        raise SaveError(
            f"{error}. Make room; then the same command with --resume_from_checkpoint latest {rest}"
        ) from None


def _num_bytes(accelerator: Accelerator, ema: EMAModel | None) -> int:
    """Return the size of what a checkpoint holds, in bytes."""
    states = [optimizer.state for optimizer in accelerator._optimizers]
    held = [value for state in states for values in state.values() for value in values.values()]
    held += [tensor for model in accelerator._models for tensor in model.state_dict().values()]
    held += _trained(accelerator) if ema is not None else []
    return sum(value.numel() * value.element_size() for value in held if isinstance(value, torch.Tensor))


def _trained(accelerator: Accelerator) -> list[torch.nn.Parameter]:
    """Return the parameters that the optimizer trains, in the order of the averages."""
    models = map(accelerator.unwrap_model, accelerator._models)
    return [parameter for model in models for parameter in trained_parameters(model)]


def _save_rest(aside: Path, state: TrainerState, averages: list[torch.Tensor], ema: EMAModel | None) -> None:
    if ema is not None:
        shadows = {str(place): tensor.contiguous() for place, tensor in enumerate(averages)}
        save_file(shadows, aside / EMA_FILE, metadata={"optimization_step": str(ema.optimization_step)})
    known = {**asdict(state), "files": file_sizes(aside)}
    (aside / STATE_FILE).write_text(json.dumps(known, indent=2), encoding="utf-8")


def read_state(path: Path) -> TrainerState:
    """Return the trainer state of a checkpoint. Raises ConfigError when the folder is not whole."""
    fault = fault_of(path)
    if fault is None:
        try:
            known = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
            return TrainerState(**{name: value for name, value in known.items() if name != "files"})
        except TypeError:
            fault = f"{STATE_FILE} is of another version of this trainer"
    raise ConfigError(
        f"--resume_from_checkpoint {path}: not a whole checkpoint: {fault}; take another, or `latest`, which "
        "finds the newest that is whole"
    )


@contextmanager
def _bare_weights(accelerator: Accelerator):
    """Let accelerate save or load the model without DDP's wrapper, whose keys no single process knows."""

    def unwrap_keys(models, weights, folder):
        for place, model in enumerate(models):
            shares = accelerator.unwrap_model(model).state_dict()
            weights[place] = {name: whole_on_main(tensor) for name, tensor in shares.items()}

    def unwrap_models(models, folder):
        models[:] = [accelerator.unwrap_model(model) for model in models]
        for model in filter(is_sharded, tuple(models)):  # safetensors cannot load into shares
            model.load_state_dict(load_file(Path(folder, SAFE_WEIGHTS_NAME)))
            models.remove(model)

    hooks = (
        accelerator.register_save_state_pre_hook(unwrap_keys),
        accelerator.register_load_state_pre_hook(unwrap_models),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def load_checkpoint(accelerator: Accelerator, path: Path, ema: EMAModel | None) -> None:
    """Put a checkpoint's weights, optimizer and scaler into the prepared objects, its averages into `ema`."""
    if ema is not None and not (path / EMA_FILE).exists():
        raise ConfigError(
            f"--resume_from_checkpoint {path}: was trained without --use_ema; leave it out, or start afresh"
        )
    scaler = accelerator.scaler
    if not (path / SCALER_NAME).exists():  # of a run in another precision: fp16's scaler stays as it starts
        accelerator.scaler = None
    try:
        with _bare_weights(accelerator):
            accelerator.load_state(str(path))
        if ema is not None:
            _load_averages(path / EMA_FILE, ema, _trained(accelerator))
    except LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"--resume_from_checkpoint {path}: does not fit this model and optimizer, or is damaged: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    finally:
        accelerator.scaler = scaler
    # It restores its count of micro-batches, of which we do not need to know: a checkpoint is between two
    # steps. With another --gradient_accumulation_steps the count would put the update inside a step.
    accelerator.step = 0


def _load_averages(path: Path, ema: EMAModel, trained: list[torch.nn.Parameter]) -> None:
    averages = load_file(path)  # on the CPU: safetensors knows no "cpu:0", the device of gloo's processes
    averages = [averages[str(place)] for place in range(len(averages))]
    if [average.shape for average in averages] != [parameter.shape for parameter in trained]:
        raise ValueError(f"{path.name} is of other weights")
    for shadow, average, parameter in zip(ema.shadow_params, averages, trained, strict=True):
        shadow.copy_(own_share(share_of(average, parameter)))
    with safe_open(path, framework="pt") as handle:
        ema.optimization_step = int(handle.metadata()["optimization_step"])
