"""Train CHAMP from videos, poses, music and reference images: parse, build, the loop, validate, save.

`python train_guidance.py --help` lists all flags; README.md shows how a run is started.
"""

import system.waiting  # before torch is loaded

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from datasets import VideoReader, collate_clips, write_video
from models import create_guidance_encoders
from system.errors import DataError, RunError, UserError
from system.folder_lock import FolderLock
from system.stop_request import Stopped, StopRequest
from training import building, faults, optimization
from training.batches import SampleStream, encode_batch, endless_batches, move_batch
from training.checkpoints import folders, resuming, saving
from training.execution import compilation, half_weights, sharding
from training.memory import out_of_memory_explained
from training.objective import mix_seed, seed_step
from training.planning.dry_run import print_plan
from training.run_log import RunLog, Stopwatch, peak_memory_gb, write_config
from training.settings.checks import settings_without_effect
from training.settings.fields import TrainingArguments
from training.settings.parsing import parse_arguments
from training.stages import optimizer_groups, trained_parts
from training.user_code import import_user_modules, load_extra_loss
from training.validation.first_batch import show_first_batch
from training.validation.validator import Validator, choose_clips
from training_data import (
    add_features,
    all_guidance,
    cache_bytes,
    cached_clips,
    make_dataset,
    report_on_data,
    split_data,
)

__all__ = ["create_guidance_encoders", "main", "train"]


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong settings or data, 1 a fault of the run, 130 or 143 stopped."""
    try:
        return train(parse_arguments(argv))
    except UserError as error:
        print(f"train_guidance.py: error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"train_guidance.py: error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"train_guidance.py: {stopped.message}", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:  # before the training or after it: a step is finished first
        print("\ntrain_guidance.py: stopped", file=sys.stderr)
        return 130


def train(arguments: TrainingArguments) -> int:
    """Check the data, then train to `output_dir/final`; return the exit code."""
    import_user_modules(arguments.guidance_modules)
    extra_loss = load_extra_loss(arguments.loss)
    building.check_output_dir(arguments.output_dir)
    is_sharded = sharding.take_request(arguments)
    accelerator = building.make_accelerator(arguments)
    try:
        with contextlib.ExitStack() as resources:
            lock = take_output_dir(Path(arguments.output_dir), accelerator)
            if lock is not None:
                resources.callback(lock.release)
            if not report_on_data(arguments, accelerator):
                return 2
            if arguments.check_data:
                return 0
            resources.enter_context(out_of_memory_explained(arguments))
            resources.enter_context(faults.lost_processes_explained())
            return run(arguments, accelerator, extra_loss, resources, is_sharded=is_sharded)
    finally:
        accelerator.end_training()


def run(
    arguments: TrainingArguments, accelerator: Accelerator, extra_loss: Callable | None,
    resources: contextlib.ExitStack, *, is_sharded: bool,
) -> int:  # fmt: skip
    """Build, train, validate and save; every process runs this. `resources` closes what it opens."""
    # Data.
    device, output_dir, seed = accelerator.device, Path(arguments.output_dir), arguments.seed
    train_set = make_dataset(arguments, arguments.train_data_dir, accelerator)
    validation_set, train_indices, validation_indices, note = split_data(arguments, train_set, accelerator)
    frame_rate = VideoReader(train_set.video_path(0)).frame_rate  # now: later the file may be gone
    clips_per_step = building.clips_per_step(arguments, accelerator.num_processes)
    num_steps = arguments.max_train_steps or math.ceil(
        arguments.num_train_epochs * len(train_indices) / clips_per_step
    )

    # Models. New weights are drawn from the seed, the same in every process.
    seed_step(seed, 0, 0)
    frozen = building.load_frozen(arguments)
    model = building.build_model(arguments, train_set.condition_shapes)
    building.check_start(arguments, model)
    building.check_sizes(arguments, frozen)
    objective = building.make_objective(arguments, extra_loss)
    if arguments.dry_run:
        batch = collate_clips([train_set[train_indices[0]]] * arguments.train_batch_size)
        if accelerator.is_main_process:
            print_plan(
                arguments, model, frozen, batch, objective=objective, device=device, is_sharded=is_sharded,
                num_clips=len(train_indices), clips_per_step=clips_per_step, num_steps=num_steps,
                cache_bytes=cache_bytes(arguments, train_set, train_indices, frozen, model, accelerator),
            )  # fmt: skip
        return 0
    # With a latent cache the encoders are on the device only while it is built, and in validation.
    precision = building.PRECISIONS[arguments.mixed_precision]
    frozen.to("cpu" if arguments.cache_latents else device, dtype=precision)

    # Optimizer: float32 weights, updated under autocast.
    bare_model = model.to(device)
    if is_sharded:
        sharding.shard_model(bare_model)
    lr_factor = clips_per_step if arguments.scale_lr else 1
    groups = optimizer_groups(bare_model, lr_factor * arguments.learning_rate, arguments.pretrained_lr_scale)
    bare_optimizer = optimization.make_optimizer(groups, arguments)
    schedule = optimization.LearningRateSchedule(bare_optimizer, arguments, num_steps)
    if is_sharded:
        sharding.shard_optimizer(bare_optimizer)
    model = accelerator.prepare_model(bare_model, evaluation_mode=is_sharded)  # without DDP where sharded
    optimizer = accelerator.prepare_optimizer(bare_optimizer)
    ema = optimization.make_ema(bare_model, arguments.ema_decay) if arguments.use_ema else None

    # Resume, or start.
    checkpoint, state, notes = resuming.find_start(accelerator, arguments, clips_per_step)
    log_dir = Path(arguments.logging_dir) / output_dir.resolve().name
    is_main = accelerator.is_main_process
    log = RunLog(log_dir, report_to=arguments.report_to, is_main=is_main, start_step=state.step)
    resources.callback(log.close)
    if checkpoint is not None:
        saving.load_checkpoint(accelerator, checkpoint, ema)
        for group in optimizer.param_groups:  # the checkpoint brought its own settings: today's count
            group.update(optimization.adam_settings(arguments))
        log.say(f"resumed from {checkpoint}, step {state.step}")
    else:
        building.set_feature_statistics(bare_model, train_set.feature_statistics(train_indices))
    newer = folders.set_aside_newer(output_dir, state.step) if is_main else []
    left_out = [f"left out: {sample_id}: {reason}" for sample_id, reason in train_set.left_out]
    without_effect = (
        *settings_without_effect(arguments), *building.model_settings_without_effect(arguments, bare_model)
    )  # fmt: skip
    for line in (*without_effect, *notes, *newer, *left_out, note):
        log.say(line)
    if is_main:
        log.text("configuration", write_config(output_dir / "config.yaml", dataclasses.asdict(arguments)))
    clips, all_on_device = train_set, contextlib.nullcontext()
    if arguments.cache_latents:
        clips = cached_clips(arguments, train_set, train_indices, frozen, accelerator, log.say)
    if arguments.cache_features:  # then training leaves encoders and reference UNet aside
        all_on_device = add_features(arguments, clips, bare_model, frozen, accelerator, log.say)
    validator = Validator(
        validation_set, choose_clips(validation_set, validation_indices, arguments.num_validation_clips),
        collate_clips, frozen, objective, device=device, arguments=arguments, save_video=save_video,
    )  # fmt: skip
    stream = SampleStream(
        train_indices, batch_size=arguments.train_batch_size, seed=seed, rank=accelerator.process_index,
        num_processes=accelerator.num_processes, start_position=state.samples_seen,
    )  # fmt: skip
    batches = endless_batches(
        clips, stream, collate_clips, num_workers=arguments.num_workers, pin_memory=device.type == "cuda",
        user_errors=(DataError,),
    )  # fmt: skip

    # Train. A step is the micro-batches of one optimizer update.
    bare_model.train()
    if arguments.compile:
        compilation.compile_blocks(bare_model, log.say, single_frames=building.trains_on_images(arguments))
    parts, trained = trained_parts(bare_model), optimization.trained_parameters(bare_model)
    # Now that nothing reads or loads them any more.
    frozen_weights = half_weights.halve_frozen(bare_model, precision, device, is_main=is_main)
    save = frozen_weights.exact()(functools.partial(
        saving.save_checkpoint, accelerator, output_dir, state, ema,
        limit=arguments.checkpoints_total_limit,
    ))  # fmt: skip
    guard, watch = faults.NonFiniteGuard(state.steps_skipped), Stopwatch()
    log.start_progress(state.step, num_steps)
    resources.callback(batches.close)
    with StopRequest() as stop:
        while state.step < num_steps:
            state.step += 1
            state.samples_seen += clips_per_step
            seed_step(seed, accelerator.process_index, state.step)
            watch.restart()
            micro_batches = []
            for _ in range(arguments.gradient_accumulation_steps):
                batch = move_batch(watch.next_batch(batches), device)
                # Another seed than the noise's below: the VAE's own noise must not be the same numbers.
                vae_seeds = [mix_seed(seed, 1, position) for position in batch["position"]]
                latents, conditions = encode_batch(frozen, batch, vae_seeds)
                if is_main and state.step == 1 and not micro_batches:
                    shown = {**conditions, "guidance": all_guidance(clips, batch)}
                    with frozen.on(device):
                        show_first_batch(frozen, latents, shown, batch["sample_id"], output_dir, log)
                draw = objective.draw(latents, [(seed, position) for position in batch["position"]])
                with accelerator.accumulate(model):
                    loss = objective(model, latents, conditions, draw)
                    accelerator.backward(loss)
                micro_batches.append(
                    faults.MicroBatch(batch["sample_id"], latents, conditions, draw, loss.detach())
                )

            # Update, unless a number is not finite. The processes agree on it, and on a request to stop.
            accelerator.unscale_gradients()
            facts = faults.agree_on_step(
                accelerator, micro_batches, optimization.gradient_norms(parts), stop.signal_number
            )
            if facts.is_finite:
                guard.step_was_good()
                optimization.clip_gradients(trained, arguments.max_grad_norm, facts.grad_norm)
            elif not faults.is_scale_search(accelerator, facts):
                log.say(
                    guard.skip(state.step, faults.describe_fault(facts, micro_batches, bare_model, objective))
                )
            lr = schedule.set(optimizer, state.step)
            if facts.is_finite or accelerator.scaler is not None:  # the scaler skips the step by itself
                optimizer.step()
            optimizer.zero_grad(set_to_none=arguments.set_grads_to_none)
            if ema is not None and facts.is_finite:
                # Takes a copy of the weights' size: where the gradients were.
                ema.step(optimization.trained_shares(bare_model))
            state.steps_skipped = guard.steps_skipped

            # Log.
            log.step(
                state.step,
                {
                    "train_loss": facts.loss,
                    "lr": lr,
                    "epoch": state.samples_seen / len(train_indices),
                    "step": state.step,
                    "samples_per_second": clips_per_step / watch.seconds(),
                    "data_wait": watch.data_wait,
                    "peak_memory_gb": peak_memory_gb(device),
                    "steps_skipped": state.steps_skipped,
                    "grad_norm": facts.grad_norm,
                    **{f"grad_norm/{part}": norm for part, norm in facts.grad_norms.items()},
                    **({"loss_scale": accelerator.scaler.get_scale()} if accelerator.scaler else {}),
                },
            )

            # Validate, at the end too.
            is_last = state.step == num_steps
            if state.step % arguments.validation_steps == 0 or is_last:
                with optimization.averaged_weights(bare_model, ema), sharding.whole_weights(bare_model):
                    if is_main:
                        with accelerator.autocast(), all_on_device:
                            validator.run(bare_model, log, state.step)
                    accelerator.wait_for_everyone()

            # Save. A full disk ends no run, but one that is asked to stop cannot wait for room.
            if state.step % arguments.checkpointing_steps == 0 or facts.signal_number:
                may_go_on = is_last or not facts.signal_number
                log.say(saving.save_or_say(save, may_go_on=may_go_on))
            if facts.signal_number and not is_last:
                log.say("stopped; the same command with --resume_from_checkpoint latest goes on")
                return 128 + facts.signal_number

    # Final model: a saved pipeline, with the averaged weights where they are kept.
    with saving.saved_on_failure(save, output_dir, state.step, log.say):
        with optimization.averaged_weights(bare_model, ema), frozen_weights.exact():
            building.save_final(accelerator, arguments, bare_model, objective.scheduler, frame_rate)
    log.say(f"final model: {output_dir / 'final'}")
    curves = f"tensorboard --logdir {log_dir}" if arguments.report_to == "tensorboard" else "at wandb"
    log.say(f"videos of validation clips: {output_dir / 'samples'}; curves: {curves}")
    return 0


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


def save_video(path: Path, frames, frame_seconds, video_path: Path, start_seconds: float) -> str | None:
    """Write frames, shown at `frame_seconds`, as an mp4 with the video's sound from `start_seconds` on.

    Return what to tell the user when there is none to be had: that is no reason to end a training.
    """
    audio_path = video_path if VideoReader(video_path).has_audio else None
    try:
        write_video(path, frames, frame_seconds, audio_path, start_seconds)
    except DataError as error:
        write_video(path, frames, frame_seconds)
        return f"{path} is without sound: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
