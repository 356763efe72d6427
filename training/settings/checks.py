"""Settings that are refused (out of range, contradictory) or reported (without any effect)."""

from pathlib import Path

from models.lora import LORA_PARTS
from shards.clips import has_shards
from system.errors import ConfigError
from training.buckets.sizes import bucket_sizes
from training.stages import STAGES, lora_parts

from .fields import (
    MAX_MOTION_FRAMES,
    AdapterSettings,
    GuidanceSettings,
    RunSettings,
    TrainingArguments,
    default_of,
    flags_of,
    shown,
)
from .regions import region_weights_of

WHOLE_FROM_ZERO = ("num_workers", "lr_warmup_steps", "seed", "beat_channel")
FROM_ZERO = (
    "noise_offset", "adam_weight_decay", "pretrained_lr_scale", "velocity_weight", "acceleration_weight",
    "bone_weight", "foot_weight", *WHOLE_FROM_ZERO,
)  # fmt: skip
SHARES = (
    "lora_dropout",
    "reference_dropout",
    "adam_beta1",
    "adam_beta2",
    "ema_decay",
    "guidance_dropout",
    "time_stretch",
)


def check_arguments(arguments: TrainingArguments) -> None:
    """Raise ConfigError where settings contradict each other or are out of range."""
    check_values(arguments)
    check_guidance(arguments, arguments.guidance_dropout)
    region_weights_of(arguments)
    if len(arguments.resolution) > 2 or any(side <= 0 or side % 8 for side in arguments.resolution):
        raise ConfigError(
            f"--resolution {shown(arguments.resolution)}: give one side, or height and width, multiples of 8"
        )
    buckets = bucket_sizes(arguments.aspect_buckets, arguments.resolution)
    if buckets and has_shards(arguments.train_data_dir):
        raise ConfigError(
            "--aspect_buckets: an index of shards has not the sizes of its videos: give the data folder "
            "that they were packed from as --train_data_dir"
        )
    if arguments.training_stage != "image" and arguments.sequence_length > MAX_MOTION_FRAMES:
        raise ConfigError(
            f"--sequence_length {arguments.sequence_length}: the motion modules know {MAX_MOTION_FRAMES} "
            f"frames at most; use --sequence_length {MAX_MOTION_FRAMES} and a larger --frame_stride"
        )
    if arguments.training_stage == "motion" and arguments.train_data_format == "image":
        raise ConfigError("--training_stage motion trains on clips: use --train_data_format video")
    if arguments.training_stage == "motion" and arguments.champ_checkpoint_dir is None:
        raise ConfigError(
            "--training_stage motion trains nothing but motion modules: give the image stage's result with "
            "--champ_checkpoint_dir OUTPUT_DIR/final (or a folder of CHAMP's .pth files)"
        )
    if arguments.cache_latents and arguments.random_flip:
        raise ConfigError(
            "--cache_latents keeps one encoding of each video, --random_flip needs two: leave one of them out"
        )
    if arguments.cache_features and not arguments.cache_latents:
        raise ConfigError("--cache_features keeps its features beside the latents: give --cache_latents too")
    check_lora(arguments, arguments.training_stage)
    if arguments.cache_features and not features_stay(arguments, arguments.training_stage):
        raise ConfigError(
            f"--cache_features: --training_stage {arguments.training_stage} trains the guidance encoders and "
            "the reference UNet, so their features change; only the motion stage can keep them, and the "
            "joint one with --lora_rank and --lora_parts unet motion"
        )


def check_lora(adapters: AdapterSettings, stage: str) -> None:
    """Raise ConfigError where --lora_parts names what the stage does not train, or nothing with adapters."""
    parts = adapters.lora_parts
    known = lora_parts(STAGES[stage])
    for part in parts:
        if part not in known:
            why = f"--training_stage {stage} does not train it" if part in LORA_PARTS else "no such part"
            raise ConfigError(f"--lora_parts {part}: {why}: name some of {', '.join(known)}")
    if parts == ["guidance_encoders"]:
        raise ConfigError(
            f"--lora_parts guidance_encoders: these train whole, so nothing has adapters: name {known[0]} too"
        )
    if len(set(parts)) != len(parts):
        raise ConfigError(f"--lora_parts {shown(parts)}: a part is named twice")


def features_stay(adapters: AdapterSettings, stage: str) -> bool:
    """Return whether neither the guidance encoders nor the reference UNet change: what a cache may keep."""
    if stage == "motion":
        return True
    changed = {"guidance_encoders", "reference_unet"} & set(adapters.lora_parts or ["reference_unet"])
    return stage == "joint" and adapters.lora_rank is not None and not changed


def settings_without_effect(arguments: TrainingArguments) -> list[str]:
    """Return a line for each changed setting that does nothing in this combination."""
    stage = arguments.training_stage
    single_frames = (arguments.trains_on_images, "the training is on single frames")
    no_lora = (arguments.lora_rank is None, "--lora_rank is not given")
    only_adapters = arguments.lora_rank is not None and "guidance_encoders" not in arguments.lora_parts
    roots = filter(None, (arguments.train_data_dir, arguments.validation_data_dir))
    no_shards = (not any(map(has_shards, roots)), "the data are folders of their own files")
    no_bias = (arguments.timestep_bias_strategy == "none", "--timestep_bias_strategy is none")
    base = Path(arguments.pretrained_model_name_or_path).expanduser()
    dead = {
        "revision": (base.exists(), "the pretrained model is on this machine"),
        "variant": (base.is_file(), "the pretrained model is one file"),
        "sequence_length": single_frames,
        "frame_stride": single_frames,
        "shard_cache_dir": no_shards,
        "shard_cache_gb": no_shards,
        "center_crop": (arguments.fit == "pad", "--fit pad crops nothing"),
        "timestep_bias_multiplier": no_bias,
        "timestep_bias_portion": no_bias,
        "cache_dir": (not arguments.cache_latents, "--cache_latents is off"),
        "music_feature_fps": ("music" not in arguments.guidance_types, "music is not in --guidance_types"),
        "lora_alpha": no_lora,
        "lora_dropout": no_lora,
        "lora_parts": no_lora,
        "pretrained_lr_scale": (only_adapters, "adapters are new weights, and nothing else trains"),
        "motion_module_path": (stage == "image", "the image stage has no motion modules"),
    }
    return dead_lines(arguments, dead | dead_in_any_run(arguments))


def dead_in_any_run(settings: RunSettings) -> dict[str, tuple[bool, str]]:
    """Return {setting: (whether it does nothing, why)} of those that every trainer has."""
    scheduler = settings.lr_scheduler
    return {
        "lr_num_cycles": (scheduler != "cosine_with_restarts", "--lr_scheduler is not cosine_with_restarts"),
        "lr_power": (scheduler != "polynomial", "--lr_scheduler is not polynomial"),
        "ema_decay": (not settings.use_ema, "--use_ema is off"),
        "hub_model_id": (not settings.push_to_hub, "--push_to_hub is off"),
        "num_train_epochs": (settings.max_train_steps is not None, "--max_train_steps overrides it"),
    }


def dead_lines(settings: RunSettings, dead: dict[str, tuple[bool, str]]) -> list[str]:
    """Return a line for each setting that does nothing and that somebody changed."""
    return [
        f"--{name} has no effect: {reason}"
        for name, (is_dead, reason) in dead.items()
        if is_dead and getattr(settings, name) != default_of(name, type(settings))
    ]


def memory_advice(arguments: TrainingArguments, *, has_gpu: bool) -> str:
    """Return which settings still save memory, the most harmless first."""
    micro_batches = arguments.train_batch_size * arguments.gradient_accumulation_steps
    helps = {
        "--gradient_checkpointing all": arguments.gradient_checkpointing != "all",
        "--mixed_precision bf16": arguments.mixed_precision == "no",
        f"--train_batch_size 1 --gradient_accumulation_steps {micro_batches} (the same step)": (
            arguments.train_batch_size > 1
        ),
        "--set_grads_to_none": not arguments.set_grads_to_none,
        "--cache_latents --cache_features": (
            has_gpu and features_stay(arguments, arguments.training_stage) and not arguments.cache_features
        ),
        "--use_8bit_adam": has_gpu and not arguments.use_8bit_adam,
        "no --use_ema": arguments.use_ema,
        "--lora_rank 16 (adapters alone train)": (
            arguments.lora_rank is None and arguments.champ_checkpoint_dir is not None
        ),
        f"a smaller --sequence_length than {arguments.sequence_length}": (
            not arguments.trains_on_images and arguments.sequence_length > 1
        ),
        "--training_stage image, then motion": arguments.training_stage == "joint",
        f"a smaller --resolution than {shown(arguments.resolution)}": True,
    }
    return f"What still helps: {'; '.join(flag for flag, does in helps.items() if does)}"


def check_values(settings: RunSettings) -> None:
    """Raise ConfigError for a wrong choice or number: whole ones from 1, others above 0, but for some."""
    for name, entry in flags_of(type(settings)).items():
        value, choices = getattr(settings, name), entry.metadata["choices"]
        if choices and value not in choices:
            raise ConfigError(f"--{name} {value}: choose one of {', '.join(choices)}")
        values = value if isinstance(value, list) else [value]
        numbers = [item for item in values if type(item) in (int, float)]
        if name in ("local_rank", "resolution"):
            continue
        if name in SHARES:
            fits, message = all(0 <= number < 1 for number in numbers), "must be at least 0 and below 1"
        elif name == "timestep_bias_portion":
            fits, message = 0 < value <= 1, "must be above 0 and at most 1"
        elif name in FROM_ZERO:
            fits, message = all(number >= 0 for number in numbers), "must not be negative"
        elif all(isinstance(number, int) for number in numbers):
            fits, message = all(number >= 1 for number in numbers), "must be at least 1"
        else:
            fits, message = all(number > 0 for number in numbers), "must be above 0"
        if not fits:
            raise ConfigError(f"--{name} {shown(value)}: {message}")
    if settings.check_data and settings.dry_run:
        raise ConfigError("--check_data and --dry_run: give one of them")


def check_guidance(guidance: GuidanceSettings, dropout: list[float]) -> None:
    types, channels = guidance.guidance_types, guidance.guidance_input_channels
    if not types:
        raise ConfigError("--guidance_types: give at least one type, for example --guidance_types music pose")
    if len(set(types)) != len(types):
        raise ConfigError(f"--guidance_types {shown(types)}: a type is named twice")
    if len(types) != len(channels):
        example = " ".join("134" if name == "pose" else "35" if name == "music" else "3" for name in types)
        raise ConfigError(
            f"--guidance_types has {len(types)} ({shown(types)}) but --guidance_input_channels has "
            f"{len(channels)} ({shown(channels)}): give one number per type in the same order, for example "
            f"--guidance_types {shown(types)} --guidance_input_channels {example}"
        )
    if len(dropout) not in (1, len(types)):
        raise ConfigError(
            f"--guidance_dropout {shown(dropout)}: give one number, or one per type ({shown(types)})"
        )
