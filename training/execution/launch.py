"""The session of a run: its processes, its output folder, and what is closed at its end."""

import contextlib
import importlib.util
import os
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list

from models.model_files import quiet_libraries
from system.errors import ConfigError, DataError
from system.folder_lock import FolderLock
from system.patience import bounded
from training.faults import lost_processes_explained
from training.settings.fields import RunSettings

from . import sharding


@dataclass
class Session:
    """The processes of a run. `resources` closes what the run opens; `is_sharded`: FSDP is asked for."""

    accelerator: Accelerator
    is_sharded: bool = False
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


@contextlib.contextmanager
def open_session(settings: RunSettings) -> Iterator[Session]:
    """Yield the session of a run, which alone may write to its output folder. Raises UserError."""
    check_output_dir(settings.output_dir)
    is_sharded = sharding.take_request(settings)
    accelerator = make_accelerator(settings)
    try:
        with contextlib.ExitStack() as resources:
            lock = take_output_dir(Path(settings.output_dir), accelerator)
            if lock is not None:
                resources.callback(lock.release)
            resources.enter_context(lost_processes_explained())
            yield Session(accelerator, is_sharded, resources)
    except BaseException as error:
        if accelerator.num_processes > 1:
            forget_frames(error)
        raise
    finally:
        # DDP's reducer must not be the last to hold the process group: it would wait, with Python's lock, for
        # gloo's thread, which may be waiting for that lock.
        accelerator.free_memory()
        accelerator.end_training()


def forget_frames(error: BaseException | None) -> None:
    """Let the frames of an error, and of those before it, hold no model any longer."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def make_accelerator(settings: RunSettings) -> Accelerator:
    """Return the accelerator, for one process or as many as a launcher started. Raises ConfigError."""
    if settings.local_rank >= 0 and "RANK" in os.environ:  # an old launcher, which sets all but LOCAL_RANK
        os.environ.setdefault("LOCAL_RANK", str(settings.local_rank))
    if settings.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("--mixed_precision fp16 needs a GPU: use --mixed_precision bf16 or no")
    check_packages(settings)
    refuse_foreign_engines()
    quiet_libraries()
    if settings.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    num_launched = int(os.environ.get("WORLD_SIZE", 1))
    place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    partners = f"the other processes (WORLD_SIZE={num_launched}, at {place})"
    with bounded(partners) if num_launched > 1 else contextlib.nullcontext():
        accelerator = _accelerator(settings, num_launched)
    if accelerator.num_processes != num_launched:
        raise ConfigError(
            f"the launcher started {num_launched} processes (WORLD_SIZE), but accelerate found "
            f"{accelerator.num_processes}: start them with torchrun or `accelerate launch --multi_gpu`"
        )
    return accelerator


def _accelerator(settings: RunSettings, num_launched: int) -> Accelerator:
    return Accelerator(
        # Several processes without a GPU talk by gloo; accelerate wants to be told, else each trains alone.
        cpu=num_launched > 1 and not torch.cuda.is_available(),
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        kwargs_handlers=[
            # The other processes wait while the main one checks data, validates or downloads.
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # no second copy of the gradients
        ],
    )


def refuse_foreign_engines() -> None:
    """Raise ConfigError where an accelerate configuration asks for an engine that this trainer cannot run."""
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("1", "true"):
            raise ConfigError(
                f"the accelerate configuration asks for {name}, which this trainer cannot run: use one of "
                "configs/accelerate/ (zero2.yaml and fsdp.yaml shard what DeepSpeed's ZeRO does)"
            )


def check_packages(settings: RunSettings) -> None:
    """Raise ConfigError for a package that is asked for and not installed, before anything takes time."""
    asked_for = {
        ("xformers", "--enable_xformers_memory_efficient_attention"): (
            settings.enable_xformers_memory_efficient_attention
        ),
        # A dry run only counts its states.
        ("bitsandbytes", "--use_8bit_adam"): settings.use_8bit_adam and not settings.dry_run,
        ("wandb", "--report_to wandb"): settings.report_to == "wandb",
    }
    for (name, flag), is_asked_for in asked_for.items():
        if is_asked_for and importlib.util.find_spec(name) is None:
            raise ConfigError(f"{flag} needs {name}: run `pip install {name}`, or leave the flag out")


def check_output_dir(output_dir: str) -> None:
    """Raise ConfigError when nothing can be written there, before anything takes time."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output_dir, prefix=".probe-") as probe:
            probe.write(bytes(4096))
            probe.flush()  # on a full disk it fails, and the file is gone all the same
    except OSError as error:
        raise ConfigError(
            f"--output_dir {output_dir}: cannot be written: {error.strerror or error}; make room or give "
            "another folder"
        ) from None


def take_output_dir(output_dir: Path, accelerator: Accelerator) -> FolderLock | None:
    """Keep other runs out: they would remove a checkpoint that this one is writing.

    The main process holds the lock. Raises DataError, in every process, when another run has it.
    """
    lock, fault = None, None
    if accelerator.is_main_process:
        fix = "wait until it ends, or give another --output_dir"
        try:
            lock = FolderLock(output_dir, output_dir / ".lock", holder="train_guidance.py", fix=fix)
        except DataError as error:
            fault = error
    fault = broadcast_object_list([fault])[0]
    if fault is not None:
        raise fault
    return lock
