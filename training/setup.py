"""What every trainer sets up around its task: optimizer, averages, log, and the checkpoint to resume from."""

import math
from collections.abc import Sequence
from pathlib import Path

from datasets import collate_clips
from shards.read_ahead import InShards

from . import optimization
from .batches import SampleStream, endless_batches
from .buckets.stream import BucketStream
from .checkpoints import best, folders, resuming, saving
from .execution import sharding
from .execution.launch import Session
from .loop import Run, Task
from .publishing.hub import open_repository
from .run_log import RunLog, write_config
from .settings.fields import RunSettings
from .step import Update


def clips_per_step(settings: RunSettings, num_processes: int) -> int:
    """Return how many clips one optimizer step sees, over all processes."""
    return num_processes * settings.train_batch_size * settings.gradient_accumulation_steps


def count_steps(settings: RunSettings, num_samples: int, num_processes: int) -> int:
    """Return the number of optimizer steps of a whole run."""
    num_clips = clips_per_step(settings, num_processes)
    return settings.max_train_steps or math.ceil(settings.num_train_epochs * num_samples / num_clips)


def start_run(
    settings: RunSettings, session: Session, task: Task, num_samples: int, notes: Sequence[str] = ()
) -> Run:
    """Return the run of a task over `num_samples` samples per epoch, at its start or its last checkpoint.

    `notes` are for the user. Left to set are the batches. Raises ConfigError: a checkpoint that does not fit.
    """
    accelerator = session.accelerator
    num_clips = clips_per_step(settings, accelerator.num_processes)
    num_steps = count_steps(settings, num_samples, accelerator.num_processes)

    # Optimizer: float32 weights, updated under autocast.
    task.model.to(accelerator.device)
    if session.is_sharded:
        sharding.shard_model(task.model)
    learning_rate = settings.learning_rate * (num_clips if settings.scale_lr else 1)
    groups = task.optimizer_groups(learning_rate, settings.pretrained_lr_scale)
    bare_optimizer = optimization.make_optimizer(groups, settings)
    schedule = optimization.LearningRateSchedule(bare_optimizer, settings, num_steps)
    if session.is_sharded:
        sharding.shard_optimizer(bare_optimizer)
    model = accelerator.prepare_model(task.model, evaluation_mode=session.is_sharded)  # sharded: without DDP
    optimizer = accelerator.prepare_optimizer(bare_optimizer)
    ema = optimization.make_ema(task.model, settings.ema_decay) if settings.use_ema else None

    # Resume, or start.
    checkpoint, state, lines = resuming.find_start(accelerator, settings, num_clips, task.frozen_digests)
    log = open_log(settings, session, start_step=state.step)
    if checkpoint is not None:
        saving.load_checkpoint(accelerator, checkpoint, ema)
        for group in optimizer.param_groups:  # the checkpoint brought its own settings: today's count
            group.update(optimization.adam_settings(settings))
        log.say(f"resumed from {checkpoint}, step {state.step}")
    else:
        task.start_afresh()
    kept = best.make_best(settings)
    if accelerator.is_main_process:
        lines += folders.set_aside_newer(Path(settings.output_dir), state.step)
        lines += best.take_up(kept, settings, checkpoint, state)
        values, sources = settings.offered(), settings.sources.comments()
        log.text("configuration", write_config(Path(settings.output_dir, "config.yaml"), values, sources))
    for line in (*lines, *notes):
        log.say(line)
    update = Update(task.model, task.trained_parts(), optimizer, ema)
    run = Run(
        settings, accelerator, task, model, update, schedule, state, log, num_steps, num_samples, best=kept,
        repository=open_repository(settings, accelerator),
    )  # fmt: skip
    session.resources.callback(run.release)
    return run


def open_batches(run: Run, num_workers: int) -> None:
    """Let the run read its samples, from the place in their order where the checkpoint was."""
    accelerator, data = run.accelerator, run.task.data
    stream = SampleStream(
        data.train_indices, batch_size=run.settings.train_batch_size, seed=run.settings.seed,
        rank=accelerator.process_index, num_processes=accelerator.num_processes,
        start_position=run.state.samples_seen, shard_numbers=data.shard_numbers,
    )  # fmt: skip
    if data.clip_sizes:
        micro_batches = run.settings.gradient_accumulation_steps
        stream = BucketStream(**vars(stream), sizes=data.clip_sizes, micro_batches=micro_batches)
    run.batches = endless_batches(
        data.clips, stream, collate_clips, num_workers=num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )  # fmt: skip
    if isinstance(data.clips, InShards):
        run.batches = data.clips.followed(run.batches, stream.order)


def open_log(settings: RunSettings, session: Session, *, start_step: int) -> RunLog:
    is_main = session.accelerator.is_main_process
    log = RunLog(log_dir_of(settings), report_to=settings.report_to, is_main=is_main, start_step=start_step)
    session.resources.callback(log.close)
    return log


def log_dir_of(settings: RunSettings) -> Path:
    return Path(settings.logging_dir) / Path(settings.output_dir).resolve().name


def where_to_look(settings: RunSettings) -> str:
    """Return the last line of a run for the user."""
    to_board = settings.report_to == "tensorboard"
    curves = f"tensorboard --logdir {log_dir_of(settings)}" if to_board else "at wandb"
    return f"videos of validation clips: {Path(settings.output_dir, 'samples')}; curves: {curves}"
