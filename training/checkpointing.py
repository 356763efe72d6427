"""Checkpoints to resume from: written aside, fsynced, renamed, and only then are old ones removed.

A folder called checkpoint-N is therefore whole. It holds accelerate's state (weights, optimizer, scaler), the
averaged weights and the position in the data.
"""

import itertools
import json
import os
import pickle
import re
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .errors import ConfigError
from .settings import TrainingArguments

STATE_FILE = "trainer_state.json"  # written last
EMA_FILE = "ema.safetensors"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
# Another value of these is another model or optimizer: its weights do not fit.
FIXED_SETTINGS = (
    "training_stage", "guidance_types", "guidance_input_channels", "guidance_embedding_channels",
    "guidance_block_out_channels", "prediction_type", "use_8bit_adam",
)  # fmt: skip
# Given or not, these decide which weights are pretrained: another grouping of the optimizer's state.
FIXED_WHETHER_GIVEN = ("motion_module_path", "champ_checkpoint_dir")
FREE_SETTINGS = ("resume_from_checkpoint", "num_workers", "local_rank", "dry_run", "cache_dir")


@dataclass
class TrainerState:
    """Where a run is: all that is not a tensor. `samples_seen` is the position in the stream of samples."""

    step: int = 0
    samples_seen: int = 0
    steps_skipped: int = 0
    settings: dict = field(default_factory=dict)


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    state: TrainerState,
    ema: EMAModel | None,
    *,
    limit: int | None = None,
) -> Path:
    """Write output_dir/checkpoint-STEP, called by every process; return its path.

    `limit` is the number of checkpoints to keep.
    """
    path = output_dir / f"checkpoint-{state.step}"
    aside = path.with_suffix(".tmp")
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with _bare_weights(accelerator):
        accelerator.save_state(str(aside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if ema is not None:
            shadows = {str(place): tensor.contiguous() for place, tensor in enumerate(ema.shadow_params)}
            save_file(shadows, aside / EMA_FILE, metadata={"optimization_step": str(ema.optimization_step)})
        (aside / STATE_FILE).write_text(json.dumps(asdict(state), indent=2))
        publish(aside, path)
        if limit is not None:
            for old in list_checkpoints(output_dir)[:-limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return path


def publish(aside: Path, path: Path) -> None:
    """Give the finished folder `aside` its name; at any moment, the name is of a whole folder or of none."""
    for folder, _, names in os.walk(aside):
        for name in names:
            _fsync(Path(folder) / name)
        _fsync(Path(folder))
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    aside.rename(path)
    _fsync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to flush a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the whole checkpoints of a folder, oldest first."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        match = CHECKPOINT_NAME.fullmatch(path.name)
        if match and is_whole(path):
            found.append((int(match.group(1)), path))
    return [path for _, path in sorted(found)]


def set_aside_newer(output_dir: Path, step: int) -> list[str]:
    """Rename checkpoints beyond `step`, which belong to another run, and return a line for each.

    They would otherwise be taken for this run's latest, and this run's own for old ones.
    """
    lines = []
    for path in list_checkpoints(output_dir):
        if int(CHECKPOINT_NAME.fullmatch(path.name).group(1)) <= step:
            continue
        names = (path.with_name(f"{path.name}.set-aside-{number}") for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        lines.append(f"{path.name} of an earlier run is now {aside.name}; delete it if it is not needed")
    return lines


def is_whole(path: Path) -> bool:
    """True if the folder can be resumed from: its state is readable and its weights are not cut short."""
    try:
        read_state(path)
        for weights in path.glob("*.safetensors"):
            with safe_open(weights, framework="pt") as handle:  # checks the length against the header
                handle.keys()
    except (ConfigError, OSError, SafetensorError):
        return False
    return True


def read_state(path: Path) -> TrainerState:
    """Return the trainer state of a checkpoint. Raises ConfigError when it has none that can be read."""
    try:
        return TrainerState(**json.loads((path / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        raise ConfigError(
            f"--resume_from_checkpoint {path}: not a checkpoint of this trainer, or half-written "
            f"({STATE_FILE} is missing or cannot be read)"
        ) from None


def find_checkpoint(resume_from_checkpoint: str | None, output_dir: Path) -> Path | None:
    """Return the folder to resume from, or None to start afresh. Raises ConfigError for a wrong path."""
    if resume_from_checkpoint is None:
        return None
    if resume_from_checkpoint == "latest":
        checkpoints = list_checkpoints(output_dir)
        return checkpoints[-1] if checkpoints else None
    for path in (Path(resume_from_checkpoint), output_dir / resume_from_checkpoint):
        if path.is_dir():
            read_state(path)
            return path
    names = ", ".join(path.name for path in list_checkpoints(output_dir)) or "no checkpoint"
    raise ConfigError(
        f"--resume_from_checkpoint {resume_from_checkpoint}: no such folder; {output_dir} has {names}"
    )


def start_state(checkpoint: Path | None, arguments: TrainingArguments) -> tuple[TrainerState, list[str]]:
    """Return where to start, and a line for each setting that changed since the checkpoint.

    Raises ConfigError where a change means another model.
    """
    settings = asdict(arguments)
    if checkpoint is None:
        return TrainerState(settings=settings), []
    state, changed = read_state(checkpoint), []
    for name, before in state.settings.items():
        now = settings.get(name, before)
        if now == before:
            continue
        is_another_start = name in FIXED_WHETHER_GIVEN and None in (now, before)
        if name in FIXED_SETTINGS or is_another_start:
            raise ConfigError(
                f"--resume_from_checkpoint {checkpoint}: trained with {name} = {before}, now it is {now}; "
                "set it back, or start in another --output_dir"
            )
        if name not in FREE_SETTINGS:
            changed.append(f"changed since the checkpoint: {name} was {before}, now it is {now}")
    state.settings = settings
    return state, changed


@contextmanager
def _bare_weights(accelerator: Accelerator):
    """Let accelerate save or load the model without DDP's wrapper, whose keys no single process knows."""

    def unwrap_keys(models, weights, folder):
        for place, model in enumerate(models):
            weights[place] = accelerator.unwrap_model(model).state_dict()

    def unwrap_models(models, folder):
        models[:] = [accelerator.unwrap_model(model) for model in models]

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
    try:
        with _bare_weights(accelerator):
            accelerator.load_state(str(path))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"--resume_from_checkpoint {path}: does not fit this model and optimizer, or is damaged: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    # It restores its count of micro-batches, of which we do not need to know: a checkpoint is between two
    # steps. With another --gradient_accumulation_steps the count would put the update inside a step.
    accelerator.step = 0
    if ema is None:
        return
    if not (path / EMA_FILE).exists():
        raise ConfigError(
            f"--resume_from_checkpoint {path}: was trained without --use_ema; leave it out, or start afresh"
        )
    shadows = load_file(path / EMA_FILE, device=str(accelerator.device))
    ema.shadow_params = [shadows[str(place)] for place in range(len(shadows))]
    with safe_open(path / EMA_FILE, framework="pt") as handle:
        ema.optimization_step = int(handle.metadata()["optimization_step"])
