"""Train CHAMP from videos, poses, music and reference images: parse, set up, fit.

`python train_guidance.py --help` lists all flags; README.md shows how a run is started.
"""

import system.waiting  # before torch is loaded

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path

from caching.clip_caches import CachePlan, ClipCaches
from models import ChampModel, create_guidance_encoders
from models.lora import check_parts
from system.command_line import run_main
from system.user_code import import_user_modules
from training import champ
from training.data import DataFolders, TrainingData, clip_keywords, open_data
from training.execution import compilation, sharding
from training.execution.half_weights import PRECISIONS, halve_frozen
from training.execution.launch import Session, open_session
from training.execution.offloading import OffloadedWeights, unused_modules
from training.faults import out_of_memory_explained
from training.loop import Run, fit
from training.objective import (
    DiffusionObjective,
    bias_timesteps,
    load_extra_loss,
    make_noise_scheduler,
    seed_step,
)
from training.planning.dry_run import print_plan
from training.settings.checks import memory_advice, settings_without_effect
from training.settings.fields import ObjectiveSettings, OutputSettings, TrainingArguments
from training.settings.parsing import parse_arguments
from training.setup import open_batches, start_run, where_to_look
from training.stages import STAGES, lora_settings
from training.validation import chosen_metrics
from training.validation.validator import Validator, choose_clips

__all__ = ["create_guidance_encoders", "main", "train"]


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong settings or data, 1 a fault of the run, 130 or 143 stopped."""
    return run_main("train_guidance.py", lambda: train(parse_arguments(argv)))


def train(arguments: TrainingArguments) -> int:
    """Check the data, then train to `output_dir/final`; return the exit code. Every process runs this."""
    import_user_modules(arguments.guidance_modules)
    chosen_metrics.check_names(arguments)
    extra_loss = load_extra_loss(arguments.loss)
    keywords = clip_keywords(arguments, arguments.seed, single_frames=arguments.trains_on_images)
    folders = DataFolders(arguments, arguments.output_dir, keywords)
    with open_session(arguments) as session:
        if not folders.report(session.accelerator):
            return 2
        if arguments.check_data:
            return 0
        session.resources.enter_context(out_of_memory_explained(functools.partial(memory_advice, arguments)))
        data = open_data(folders, session.accelerator)
        chosen_metrics.check_on_clips(data.validation_set, validation_clips(arguments, data), arguments)
        task = make_task(arguments, data, extra_loss)
        if arguments.dry_run:
            print_plan(arguments, task, session, plan_caches(arguments, task))
            return 0
        run = set_up(arguments, session, task)
        code = fit(run)
        if code == 0:
            run.log.say(where_to_look(arguments))
        return code


def make_task(
    arguments: TrainingArguments, data: TrainingData, extra_loss: Callable | None
) -> champ.ChampTask:
    """Return what is trained: the model of a stage, its frozen encoders and its objective."""
    # New weights are drawn from the seed, the same in every process.
    seed_step(arguments.seed, 0, 0)
    frozen = champ.load_frozen(arguments)
    model = make_model(arguments, data.train_set.condition_shapes)
    champ.check_start(arguments, arguments.prediction_type, model, arguments.guidance_types)
    champ.check_sizes(arguments.resolution, frozen)
    objective = make_objective(arguments, arguments.guidance_types, extra_loss)
    return champ.ChampTask(arguments, data, model, frozen, objective)


def make_model(arguments: TrainingArguments, condition_shapes: dict[str, tuple[int, ...]]) -> ChampModel:
    """Return the model of a stage, its frozen parameters frozen.

    `condition_shapes` is {type: shape of one frame's condition}: 3-D music goes to a spatial encoder.
    """
    encoders = create_guidance_encoders(
        arguments.guidance_types,
        arguments.guidance_input_channels,
        arguments.guidance_embedding_channels,
        spatial_music=len(condition_shapes.get("music", ())) == 3,
        block_out_channels=tuple(arguments.guidance_block_out_channels),
    )
    model = champ.load_model(arguments, encoders)
    stage, single_frames = arguments.training_stage, arguments.trains_on_images
    lora = lora_settings(arguments, STAGES[stage])
    if lora is not None:
        check_parts(model, lora.parts)
    return champ.ready_for_stage(model, stage, arguments, single_frames=single_frames, lora=lora)


def make_objective(settings: ObjectiveSettings, types: list[str], extra_loss: Callable | None):
    """Return the objective: v-prediction on a schedule that ends at zero signal, CHAMP's loss weights."""
    shares = settings.guidance_dropout  # one number counts for every type
    scheduler = make_noise_scheduler(settings.prediction_type)
    return DiffusionObjective(
        scheduler,
        snr_gamma=settings.snr_gamma,
        noise_offset=settings.noise_offset,
        timestep_weights=bias_timesteps(
            scheduler.config.num_train_timesteps,
            settings.timestep_bias_strategy,
            settings.timestep_bias_multiplier,
            settings.timestep_bias_portion,
        ),
        reference_dropout=settings.reference_dropout,
        guidance_dropout=dict(zip(types, shares * len(types) if len(shares) == 1 else shares, strict=True)),
        extra_loss=extra_loss,
    )


def set_up(arguments: TrainingArguments, session: Session, task: champ.ChampTask) -> Run:
    """Return CHAMP's run, ready for `fit`: optimizer and checkpoint, caches, validation, batches, speed."""
    data, device = task.data, session.accelerator.device
    task.frozen_digests = champ.frozen_digests(task.frozen) | champ.base_digests(task.model)
    # With a latent cache the encoders are on the device only while it is built, and in validation.
    task.frozen.to("cpu" if arguments.cache_latents else device, dtype=PRECISIONS[arguments.mixed_precision])
    notes = (
        *settings_without_effect(arguments), *champ.settings_without_effect_on(task.model, arguments),
        *data.left_out_lines(), data.note,
    )  # fmt: skip
    run = start_run(arguments, session, task, len(data.train_indices), notes)
    if arguments.cache_latents:
        run.all_on_device = read_from_caches(arguments, run)

    # Validation, on fixed clips; and the first batch, drawn as the networks see it.
    task.validator = Validator(
        data.validation_set, validation_clips(arguments, data), task.frozen, task.objective,
        settings=arguments, device=device,
    )  # fmt: skip
    compared = [data.train_set.read_clip(*clip) for clip in training_clips(arguments, data)]
    task.validator.training_clips = task.validator.encode(compared)
    if session.accelerator.is_main_process and run.state.step == 0:
        task.shows_first_batch = functools.partial(task.show_first_batch, log=run.log)

    open_batches(run, arguments.num_workers)
    session.resources.callback(run.batches.close)
    speed_up(arguments, run)
    return run


def validation_clips(settings: OutputSettings, data: TrainingData) -> list[tuple[int, int]]:
    """Return (index, start frame) of the fixed clips that are validated on."""
    return choose_clips(data.validation_set, data.validation_indices, settings.num_validation_clips)


def training_clips(settings: OutputSettings, data: TrainingData) -> list[tuple[int, int]]:
    """Return (index, start frame) of as many training clips, none where they are validated on anyway."""
    if data.validation_set is data.train_set and data.validation_indices == data.train_indices:
        return []
    return choose_clips(data.train_set, data.train_indices, settings.num_validation_clips)


def speed_up(arguments: TrainingArguments, run: Run) -> None:
    """Compile the blocks with --compile, and halve the frozen weights under autocast.

    To be called when neither a cache nor a checkpoint reads or loads frozen weights any more.
    """
    accelerator, model = run.accelerator, run.task.model
    model.train()
    if arguments.compile:
        compilation.compile_blocks(model, run.log.say, single_frames=arguments.trains_on_images)
    precision = PRECISIONS[arguments.mixed_precision]
    halves = halve_frozen(model, precision, accelerator.device, is_main=accelerator.is_main_process)
    run.exact_weights = halves.exact


def plan_caches(arguments: TrainingArguments, task: champ.ChampTask) -> ClipCaches:
    """Return the run's caches, whether they are asked for or not."""
    plan = CachePlan(
        cache_dir=Path(arguments.cache_dir or Path(arguments.output_dir, "latent_cache")),
        precision=PRECISIONS[arguments.mixed_precision],
        allow_tf32=arguments.allow_tf32,
        batch_size=arguments.train_batch_size,
        resolution=arguments.resolution,
    )
    return ClipCaches(plan, task.data.train_set, task.data.train_indices, task.frozen)


def read_from_caches(arguments: TrainingArguments, run: Run) -> contextlib.AbstractContextManager:
    """Let the data's clips come from the caches, which are built first where they are not complete.

    Return the context in which all networks are on the device: validation needs those that training does not.
    """
    task, accelerator, say = run.task, run.accelerator, run.log.say
    caches = plan_caches(arguments, task)
    if not arguments.center_crop and arguments.fit != "pad":
        say("--cache_latents: every clip of a video is cropped alike, as with --center_crop")
    clips = task.data.clips = caches.open_latents(accelerator, say)
    if not arguments.cache_features:
        return contextlib.nullcontext()
    with sharding.whole_weights(task.model):
        keeps_conditions = arguments.loss is not None  # a loss of the user's own may read them
        types = caches.add_features(clips, task.model, accelerator, say, keeps_conditions=keeps_conditions)
    if sharding.is_sharded(task.model):  # each process has its share of the weights, and no more
        return contextlib.nullcontext()
    return OffloadedWeights(unused_modules(task.model, types), accelerator.device)


if __name__ == "__main__":
    sys.exit(main())
