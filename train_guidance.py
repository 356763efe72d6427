"""Train CHAMP from videos, poses, music and reference images: parse, build, the loop, validate, save.

`python train_guidance.py --help` lists all flags; README.md shows how a run is started.
"""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from datasets import (
    CachedClips,
    DataError,
    DataReport,
    GuidanceDataset,
    LatentCache,
    VideoReader,
    check_data,
    collate_clips,
    read_report,
    write_report_page,
    write_video,
)
from models import ModelError, create_guidance_encoders
from training import building, checkpoint_files, checkpointing, faults, optimization, resuming
from training.argument_checks import settings_without_effect
from training.arguments import parse_arguments
from training.batches import SampleStream, encode_batch, endless_batches, move_batch
from training.dry_run import print_plan
from training.errors import ConfigError, RunError
from training.first_batch import show_first_batch
from training.latent_building import CacheEncoder, build_cache
from training.memory import out_of_memory_explained
from training.objective import mix_seed, seed_step
from training.run_log import RunLog, Stopwatch, peak_memory_gb, write_config
from training.settings import TrainingArguments
from training.stages import optimizer_groups, trained_parts
from training.user_code import import_user_modules, load_extra_loss
from training.validation import Validator, choose_clips

NOT_CHECKED = ("seed", "fit", "center_crop", "random_flip")  # settings that the data's check does not need
MAX_FAULTS_SHOWN = 10  # at the start of a run; --check_data shows all

__all__ = ["create_guidance_encoders", "main", "train"]


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong settings or data, 1 a fault of the run, 130 or 143 stopped."""
    try:
        return train(parse_arguments(argv))
    except (ConfigError, DataError, ModelError) as error:
        print(f"train_guidance.py: error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"train_guidance.py: error: {error}", file=sys.stderr)
        return 1
    except faults.Stopped as stopped:
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
    accelerator = building.make_accelerator(arguments)
    try:
        if not report_on_data(arguments, accelerator):
            return 2
        if arguments.check_data:
            return 0
        with contextlib.ExitStack() as resources:
            resources.enter_context(out_of_memory_explained(arguments))
            resources.enter_context(faults.lost_processes_explained())
            return run(arguments, accelerator, extra_loss, resources)
    finally:
        accelerator.end_training()


def run(
    arguments: TrainingArguments, accelerator: Accelerator, extra_loss: Callable | None,
    resources: contextlib.ExitStack,
) -> int:  # fmt: skip
    """Build, train, validate and save; every process runs this. `resources` closes what it opens."""
    # Data.
    device, output_dir, seed = accelerator.device, Path(arguments.output_dir), arguments.seed
    train_set = make_dataset(arguments, arguments.train_data_dir, accelerator)
    validation_set, train_indices, validation_indices, split_note = split_data(
        arguments, train_set, accelerator
    )
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
    if arguments.dry_run:
        batch = collate_clips([train_set[train_indices[0]]] * arguments.train_batch_size)
        if accelerator.is_main_process:
            print_plan(
                arguments, model, frozen, batch, num_clips=len(train_indices), clips_per_step=clips_per_step,
                num_steps=num_steps, cache_bytes=cache_bytes(arguments, train_set, train_indices, frozen),
            )  # fmt: skip
        return 0
    # With a latent cache the encoders are on the device only while it is built, and in validation.
    frozen.to(
        "cpu" if arguments.cache_latents else device, dtype=building.PRECISIONS[arguments.mixed_precision]
    )
    objective = building.make_objective(arguments, extra_loss)

    # Optimizer: float32 weights, updated under autocast.
    bare_model = model.to(device)
    lr_factor = clips_per_step if arguments.scale_lr else 1
    groups = optimizer_groups(bare_model, lr_factor * arguments.learning_rate, arguments.pretrained_lr_scale)
    bare_optimizer = optimization.make_optimizer(groups, arguments)
    schedule = optimization.LearningRateSchedule(bare_optimizer, arguments, num_steps)
    model, optimizer = accelerator.prepare(bare_model, bare_optimizer)
    ema = optimization.make_ema(bare_model, arguments.ema_decay) if arguments.use_ema else None

    # Resume, or start.
    checkpoint, state, notes = resuming.find_start(accelerator, arguments, clips_per_step)
    log_dir = Path(arguments.logging_dir) / output_dir.resolve().name
    is_main = accelerator.is_main_process
    log = RunLog(log_dir, report_to=arguments.report_to, is_main=is_main, start_step=state.step)
    resources.callback(log.close)
    if checkpoint is not None:
        checkpointing.load_checkpoint(accelerator, checkpoint, ema)
        for group in optimizer.param_groups:  # the checkpoint brought its own settings: today's count
            group.update(optimization.adam_settings(arguments))
        log.say(f"resumed from {checkpoint}, step {state.step}")
    else:
        building.set_feature_statistics(bare_model, train_set.feature_statistics(train_indices))
    newer = checkpoint_files.set_aside_newer(output_dir, state.step) if is_main else []
    left_out = [f"left out: {sample_id}: {reason}" for sample_id, reason in train_set.left_out]
    without_effect = (
        *settings_without_effect(arguments), *building.model_settings_without_effect(arguments, bare_model)
    )  # fmt: skip
    for line in (*without_effect, *notes, *newer, *left_out, split_note):
        log.say(line)
    if is_main:
        log.text("configuration", write_config(output_dir / "config.yaml", dataclasses.asdict(arguments)))
    clips = train_set
    if arguments.cache_latents:
        clips = cached_clips(arguments, train_set, train_indices, frozen, accelerator, log.say)
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
    parts, trained = trained_parts(bare_model), optimization.trained_parameters(bare_model)
    save = functools.partial(
        checkpointing.save_checkpoint, accelerator, output_dir, state, ema,
        limit=arguments.checkpoints_total_limit,
    )  # fmt: skip
    guard, watch = faults.NonFiniteGuard(state.steps_skipped), Stopwatch()
    log.start_progress(state.step, num_steps)
    resources.callback(batches.close)
    with faults.StopRequest() as stop:
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
                    with frozen.on(device):
                        show_first_batch(frozen, latents, conditions, batch["sample_id"], output_dir, log)
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
                ema.step(trained)  # takes a copy of the weights' size: where the gradients were
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
                if is_main:
                    with optimization.averaged_weights(bare_model, ema), accelerator.autocast():
                        validator.run(bare_model, log, state.step)
                accelerator.wait_for_everyone()

            # Save. A full disk ends no run, but one that is asked to stop cannot wait for room.
            if state.step % arguments.checkpointing_steps == 0 or facts.signal_number:
                may_go_on = is_last or not facts.signal_number
                log.say(checkpointing.save_or_say(save, may_go_on=may_go_on))
            if facts.signal_number and not is_last:
                log.say("stopped; the same command with --resume_from_checkpoint latest goes on")
                return 128 + facts.signal_number

    # Final model: a saved pipeline, with the averaged weights where they are kept.
    with checkpointing.saved_on_failure(save, output_dir, state.step, log.say):
        with optimization.averaged_weights(bare_model, ema):
            building.save_final(accelerator, arguments, bare_model, objective.scheduler, frame_rate)
    log.say(f"final model: {output_dir / 'final'}")
    curves = f"tensorboard --logdir {log_dir}" if arguments.report_to == "tensorboard" else "at wandb"
    log.say(f"videos of validation clips: {output_dir / 'samples'}; curves: {curves}")
    return 0


def make_dataset(arguments: TrainingArguments, data_root: str, accelerator: Accelerator) -> GuidanceDataset:
    """Return the dataset of a folder under the run's settings.

    With --skip_invalid the main process knows from the report what to leave out, and tells the others.
    """
    left_out = None
    if arguments.skip_invalid:
        found = checked_data(arguments, data_root).left_out if accelerator.is_main_process else None
        left_out = broadcast_object_list([found])[0]
    return GuidanceDataset(
        data_root, arguments.guidance_types, arguments.guidance_input_channels, left_out=left_out,
        **building.dataset_settings(arguments),
    )  # fmt: skip


def cached_clips(
    arguments: TrainingArguments, train_set: GuidanceDataset, indices: list[int], frozen,
    accelerator: Accelerator, say: Callable,
) -> CachedClips:  # fmt: skip
    """Return the training clips from the latent cache, which is built first where it is not complete."""
    cache = LatentCache(train_set, building.cache_dir(arguments), building.encoded_by(arguments, frozen))
    if not arguments.center_crop and arguments.fit != "pad":
        say("--cache_latents: every clip of a video is cropped alike, as with --center_crop")
    encoder = CacheEncoder(
        frozen, accelerator.device, batch_size=arguments.train_batch_size,
        sequence_length=train_set.sequence_length,
    )  # fmt: skip
    paths = build_cache(
        cache, indices, encoder, accelerator, latent_bytes=building.latent_bytes(arguments, frozen),
        user_errors=(DataError,), say=say,
    )  # fmt: skip
    return CachedClips(
        paths, train_set.sample_ids, sequence_length=train_set.sequence_length,
        frame_stride=train_set.frame_stride, seed=arguments.seed,
    )  # fmt: skip


def cache_bytes(
    arguments: TrainingArguments, train_set: GuidanceDataset, indices: list[int], frozen
) -> int | None:
    """Return about what the latent cache takes, None without one."""
    if not arguments.cache_latents:
        return None
    num_frames = sum(map(train_set.num_frames, indices))
    cache = LatentCache(train_set, building.cache_dir(arguments), {})
    return cache.num_bytes(num_frames, len(indices), building.latent_bytes(arguments, frozen))


def split_data(arguments: TrainingArguments, train_set: GuidanceDataset, accelerator: Accelerator):
    """Return the validation dataset, the training and the validation indices, and what to tell the user."""
    everything = list(range(len(train_set)))
    if arguments.validation_data_dir is None:
        kept, held_out, note = building.split_for_validation(train_set.sample_ids)
        return train_set, kept, held_out, note
    validation_set = make_dataset(arguments, arguments.validation_data_dir, accelerator)
    note = f"validation on {len(validation_set)} videos of {arguments.validation_data_dir}"
    return validation_set, everything, list(range(len(validation_set))), note


def report_on_data(arguments: TrainingArguments, accelerator: Accelerator) -> bool:
    """Check the data, tell the user of every fault and return whether the data can be trained on.

    The main process checks. A warning stops no run, and with --skip_invalid no faulty sample does.
    """
    verdict = [True]
    if accelerator.is_main_process:
        for data_root in filter(None, (arguments.train_data_dir, arguments.validation_data_dir)):
            report = checked_data(arguments, data_root)
            page_path = report_path(arguments, data_root).with_suffix(".html")
            if arguments.check_data:
                print(f"{report.summary()}\nto look at: {page_path}")
                verdict[0] &= report.ok
                continue
            lines = report.lines(MAX_FAULTS_SHOWN)
            if len(report.faults) > MAX_FAULTS_SHOWN:
                lines.append(f"and {len(report.faults) - MAX_FAULTS_SHOWN} more; --check_data lists all")
            note = " (unchanged since the last check)" if report.reused else ""
            print("\n".join([*lines, f"{report.count()}{note}; to look at: {page_path}"]), file=sys.stderr)
            can_go_on = report.has_usable_samples if arguments.skip_invalid else not report.errors
            if arguments.skip_invalid and not can_go_on:
                print("no sample is left to train on", file=sys.stderr)
            verdict[0] &= can_go_on
    return broadcast_object_list(verdict)[0]


def report_path(arguments: TrainingArguments, data_root: str) -> Path:
    """Return where the report on a folder is kept: the validation data has one of its own."""
    is_validation = Path(data_root) != Path(arguments.train_data_dir)
    return Path(arguments.output_dir) / f"{'validation_' * is_validation}data_report.json"


def checked_data(arguments: TrainingArguments, data_root: str) -> DataReport:
    """Return the report on a folder, and write it beside the page to look at.

    The last one counts where nothing has changed since, except for --check_data. That decodes whole videos,
    as --skip_invalid does, which must know before the training what cannot be read.
    """
    path = report_path(arguments, data_root)
    held_out = arguments.validation_data_dir if data_root != arguments.validation_data_dir else None
    settings = building.dataset_settings(arguments)
    report = check_data(
        data_root, arguments.guidance_types, arguments.guidance_input_channels,
        **{name: settings[name] for name in settings if name not in NOT_CHECKED},
        validation_data_dir=held_out, decode_videos=arguments.check_data or arguments.skip_invalid,
        num_workers=arguments.num_workers, earlier=None if arguments.check_data else read_report(path),
    )  # fmt: skip
    page_path = path.with_suffix(".html")
    # The page first: what is killed while it is drawn has no report, and checks again.
    if not report.reused or not page_path.is_file():
        write_report_page(report, page_path, num_workers=arguments.num_workers)
    if not report.reused:
        report.write(path)
    return report


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
