"""The session of a run: its processes, its output folder, and what is closed at its end."""

import contextlib
import importlib.util
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
    broadcast_object_list,
)
from accelerate.utils.environment import get_cpu_distributed_information

from models.model_files import quiet_libraries
from system.errors import ConfigError, DataError
from system.folder_lock import FolderLock
from system.patience import Patience, bounded
from training.faults import lost_processes_explained
from training.settings import from_accelerate
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
    notes = [*from_accelerate.obeyed_lines(os.environ), *sharding.unheeded_lines(os.environ)]
    is_sharded = sharding.take_request(settings)
    accelerator = make_accelerator(settings)
    if accelerator.is_main_process:
        size = f"processes: {accelerator.num_processes}, this one on {accelerator.device}"
        for line in (*settings.sources.lines(settings), *notes, size):
            print(line, file=sys.stderr, flush=True)
    try:
        with contextlib.ExitStack() as resources:
            lock = take_output_dir(settings, accelerator)
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
    from_accelerate.refuse(os.environ)
    on_cpu = not torch.cuda.is_available() or from_accelerate.asks_for_cpu(os.environ)
    if settings.mixed_precision == "fp16" and on_cpu:
        origin = settings.sources.accelerate.get("mixed_precision", "--mixed_precision fp16")
        raise ConfigError(f"{origin} needs a GPU: use --mixed_precision bf16 or no")
    check_packages(settings)
    quiet_libraries()
    if settings.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    num_launched = count_launched()
    place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    partners = f"the other processes (WORLD_SIZE={num_launched}, at {place})"
    patience = Patience(fix="see that all were started and reach that address, then start all again")
    with bounded(lambda: partners, patience) if num_launched > 1 else contextlib.nullcontext():
        # Several processes without a GPU talk by gloo; accelerate wants to be told, else each trains alone.
        accelerator = call_accelerate(settings, cpu=num_launched > 1 and on_cpu)
    if accelerator.num_processes != num_launched:
        raise ConfigError(
            f"the launcher started {num_launched} processes (WORLD_SIZE), but accelerate found "
            f"{accelerator.num_processes}: start them with torchrun or `accelerate launch --multi_gpu`"
        )
    return accelerator


def count_launched() -> int:
    """Return how many processes a launcher started: mpirun's count where accelerate takes it, on a CPU."""
    if "WORLD_SIZE" not in os.environ and from_accelerate.is_on(os.environ.get(from_accelerate.USE_CPU)):
        return get_cpu_distributed_information().world_size
    return int(os.environ.get("WORLD_SIZE", 1))


def call_accelerate(settings: RunSettings, *, cpu: bool) -> Accelerator:
    """Return the accelerator of settings. What is left out here it would read from the environment."""
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(settings.gradient_accumulation_steps),
            # --compile compiles blocks; accelerate would compile the whole model.
            dynamo_plugin=TorchDynamoPlugin(
                backend="no", mode="default", fullgraph=False, dynamic=False, use_regional_compilation=False
            ),
            kwargs_handlers=[
                # The other processes wait while the main one checks data, validates or downloads.
                InitProcessGroupKwargs(timeout=timedelta(hours=6)),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # no second copy of gradients
            ],
        )
    except (ImportError, NotImplementedError, ValueError) as error:
        raise ConfigError(f"accelerate: {' '.join(str(error).split())}") from None


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


def take_output_dir(settings: RunSettings, accelerator: Accelerator) -> FolderLock | None:
    """Keep other runs out: they would remove a checkpoint that this one is writing.

    The main process holds the lock. Raises DataError, in every process, when another run has it.
    """
    lock, fault, output_dir = None, None, Path(settings.output_dir)
    if accelerator.is_main_process:
        fix = "wait until it ends, or give another --output_dir"
        try:
            lock = FolderLock(output_dir, output_dir / ".lock", holder=settings.program, fix=fix)
        except DataError as error:
            fault = error
    fault = broadcast_object_list([fault])[0]
    if fault is not None:
        raise fault
    return lock
