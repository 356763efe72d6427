"""Every setting of a training run: name, default, help and check, in one place.

The command-line parser and the YAML schema are both made from the dataclass below. A flag beats the YAML
file, which beats the default; an unknown name is an error that offers the nearest one.
"""

import argparse
import difflib
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import ConfigError

MAX_MOTION_FRAMES = 32  # positions of the motion modules (CHAMP and AnimateDiff): there are no more


def flag(default, help, *, choices=None, aliases=()):
    """Return a dataclass field that knows how to be a command-line flag."""
    metadata = {"help": help, "choices": choices, "aliases": tuple(aliases)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainingArguments:
    # Model.
    pretrained_model_name_or_path: str = flag(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Stable Diffusion 1.5 to start from: a local folder in diffusers' layout, or a hub id",
    )
    revision: str | None = flag(None, "hub revision (branch, tag or commit) of the pretrained model")
    variant: str | None = flag(None, "variant of the pretrained weight files, for example fp16")
    vae_model_name_or_path: str | None = flag(
        None, "VAE to use instead of the pretrained model's, for example stabilityai/sd-vae-ft-mse"
    )
    image_encoder_name_or_path: str | None = flag(
        None, "CLIP image encoder to use instead of the pretrained model's image_encoder/"
    )
    motion_module_path: str | None = flag(None, "AnimateDiff or CHAMP motion module weights to start from")
    champ_checkpoint_dir: str | None = flag(
        None, "CHAMP weights to start from: a folder of the official .pth files, or the final/ of a run"
    )
    training_stage: str = flag(
        "joint",
        "joint: everything; image: no motion modules, single frames; motion: motion modules only",
        choices=("joint", "image", "motion"),
    )

    # Guidance.
    guidance_types: list[str] = flag(["music", "pose"], "guidance types, each a folder of the data")
    guidance_input_channels: list[int] = flag(
        [1, 134], "one number per type: music features, pose key points, or image channels"
    )
    guidance_embedding_channels: int = flag(1280, "width of the guidance encoders' output")
    guidance_block_out_channels: list[int] = flag(
        [16, 32, 96, 256], "widths of the spatial guidance encoders' blocks"
    )
    guidance_modules: list[str] = flag(
        [], "your Python modules (names or .py files) that register guidance encoders of your own"
    )
    loss: str | None = flag(
        None, "MODULE:FUNCTION of your own loss(model_pred, target, guidance_condition), added to the loss"
    )

    # Data.
    train_data_dir: str = flag(
        "./data", "folder with videos/, reference_images/ and a folder per guidance type"
    )
    validation_data_dir: str | None = flag(
        None,
        "like --train_data_dir, for validation. Without it one video in twenty (at most 8) is held out of "
        "the training data; with fewer than 10 videos validation uses training clips, and says so",
    )
    train_data_format: str = flag(
        "video",
        "video: clips; image: single frames (implied by --training_stage image)",
        choices=("video", "image"),
    )
    resolution: list[int] = flag([512], "side of the square frames in pixels, or height and width")
    fit: str = flag(
        "crop",
        "crop: fill the frame and cut what is over; pad: keep the whole picture",
        choices=("crop", "pad"),
    )
    sequence_length: int = flag(16, f"frames in a clip, at most {MAX_MOTION_FRAMES}")
    frame_stride: int = flag(1, "video frames from one clip frame to the next")
    music_feature_fps: float | None = flag(
        None, "rate of the music feature rows; without it row k belongs to video frame k"
    )
    skip_invalid: bool = flag(False, "leave faulty samples out (counted and listed) instead of stopping")
    check_data: bool = flag(False, "report on the data and stop: exit code 0 if clean, 2 if not")
    num_workers: int = flag(4, "data loader processes", aliases=["dataloader_num_workers"])

    # Objective.
    prediction_type: str = flag(
        "v_prediction",
        "what the model predicts; the noise schedule ends at zero signal except with epsilon, which cannot",
        choices=("v_prediction", "epsilon", "sample"),
    )
    snr_gamma: float | None = flag(
        5.0, "cap of the loss weight over the signal-to-noise ratio; none: no weight"
    )
    noise_offset: float = flag(0.05, "strength of the noise that is constant over a clip")
    reference_dropout: float = flag(
        0.1, "share of samples trained without their reference (for guidance scale)"
    )
    guidance_dropout: list[float] = flag(
        [0.1], "share of samples trained without a guidance type; one number, or one per type"
    )

    # Optimisation.
    seed: int = flag(42, "seed of everything random")
    train_batch_size: int = flag(1, "clips per process and micro-batch")
    gradient_accumulation_steps: int = flag(1, "micro-batches per optimizer step")
    num_train_epochs: int = flag(100, "passes over the data")
    max_train_steps: int | None = flag(None, "optimizer steps; overrides --num_train_epochs")
    learning_rate: float = flag(1e-4, "learning rate of new weights")
    pretrained_lr_scale: float = flag(0.1, "factor on the learning rate of weights that came pretrained")
    scale_lr: bool = flag(False, "multiply the learning rate by processes x batch size x accumulation steps")
    lr_scheduler: str = flag(
        "constant",
        "schedule of the learning rate, counted in optimizer steps; all of them warm up",
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    lr_warmup_steps: int = flag(500, "optimizer steps of linear warm-up")
    lr_num_cycles: int = flag(1, "restarts of cosine_with_restarts")
    lr_power: float = flag(1.0, "power of polynomial")
    adam_beta1: float = flag(0.9, "decay of Adam's first moment")
    adam_beta2: float = flag(0.999, "decay of Adam's second moment")
    adam_weight_decay: float = flag(1e-2, "weight decay")
    adam_epsilon: float = flag(1e-8, "Adam's epsilon")
    use_8bit_adam: bool = flag(False, "8-bit Adam of bitsandbytes: a quarter of the optimizer memory")
    max_grad_norm: float = flag(1.0, "gradients are clipped to this norm")
    set_grads_to_none: bool = flag(True, "free gradients after a step instead of zeroing them")
    use_ema: bool = flag(False, "keep an exponential moving average of the weights; validate and export it")
    ema_decay: float = flag(0.9999, "decay of that average")

    # Speed and memory.
    mixed_precision: str = flag(
        "no", "autocast precision; the weights stay float32", choices=("no", "fp16", "bf16")
    )
    gradient_checkpointing: bool = flag(
        False, "recompute activations in the backward pass: less memory, slower"
    )
    enable_xformers_memory_efficient_attention: bool = flag(
        False, "attention by xformers instead of PyTorch", aliases=["use_xformers"]
    )
    allow_tf32: bool = flag(False, "TF32 matrix products on NVIDIA GPUs: faster, slightly less exact")
    local_rank: int = flag(
        -1, "process number on this machine, set by old launchers; the environment beats it"
    )

    # Output.
    output_dir: str = flag("./champ_guidance_output", "folder of checkpoints, samples and the final model")
    logging_dir: str = flag(
        "logs", "folder of the TensorBoard logs; a run logs to a folder named as its output_dir"
    )
    report_to: str = flag("tensorboard", "where scalars and pictures go", choices=("tensorboard", "wandb"))
    checkpointing_steps: int = flag(500, "optimizer steps between checkpoints", aliases=["save_steps"])
    checkpoints_total_limit: int | None = flag(None, "checkpoints to keep; older ones are removed")
    resume_from_checkpoint: str | None = flag(
        None, "a checkpoint folder, or latest; latest with nothing to resume starts afresh"
    )
    validation_steps: int = flag(100, "optimizer steps between validations")
    num_validation_clips: int = flag(4, "fixed clips that the validation measures")
    num_inference_steps: int = flag(20, "sampling steps of the validation video")
    guidance_scale: float = flag(3.5, "classifier-free guidance scale of the validation video")
    dry_run: bool = flag(False, "print the configuration, sizes and estimates of this run; train nothing")


FLAGS = {entry.name: entry for entry in fields(TrainingArguments)}
ALIASES = {alias: entry.name for entry in FLAGS.values() for alias in entry.metadata["aliases"]}


def default_of(name: str):
    entry = FLAGS[name]
    return entry.default if entry.default is not MISSING else entry.default_factory()


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is a ConfigError of one line that offers the nearest flag."""

    def error(self, message: str):
        unknown = message.split("unrecognized arguments: ")[-1].split() if "unrecognized" in message else []
        hints = [_nearest(word[2:].split("=")[0], prefix="--") for word in unknown if word.startswith("--")]
        raise ConfigError(f"{message}{''.join(hints)}. --help lists all flags")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; a flag that was not given leaves no trace in its namespace."""
    parser = _Parser(
        prog="train_guidance.py",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Train CHAMP: human image animation from a reference image and guidance (pose, music, ...).",
    )
    parser.add_argument("--config", help="YAML file whose keys are the flag names; flags beat it")
    for name, entry in FLAGS.items():
        options = [f"--{option}" for option in (name, *entry.metadata["aliases"])]
        help_text = f"{entry.metadata['help']} (default: {_shown(default_of(name))})".replace("%", "%%")
        kind = _argparse_kind(entry.type)
        if entry.metadata["choices"] and "type" in kind:
            kind["choices"] = entry.metadata["choices"]
        parser.add_argument(*options, dest=name, help=help_text, **kind)
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> TrainingArguments:
    """Return the checked settings of a command line. Raises ConfigError."""
    given = vars(build_parser().parse_args(argv))
    config_path = given.pop("config", None)
    settings = _read_yaml(config_path) if config_path is not None else {}
    if "train_data_dir" in given and "validation_data_dir" in settings and "validation_data_dir" not in given:
        # The YAML's validation data belongs to the YAML's training data, not to the user's.
        print(f"note: --train_data_dir given, so validation_data_dir of {config_path} is not used")
        del settings["validation_data_dir"]
    merged = _merge(settings, given, config_path)
    check_arguments(merged)
    return merged


def check_arguments(arguments: TrainingArguments) -> None:
    """Raise ConfigError where settings contradict each other or are out of range."""
    _check_choices(arguments)
    _check_ranges(arguments)
    _check_guidance(arguments)
    if len(arguments.resolution) > 2 or any(side <= 0 or side % 8 for side in arguments.resolution):
        raise ConfigError(
            f"--resolution {_shown(arguments.resolution)}: give one side or a height and a width, multiples of 8"
        )
    if arguments.training_stage != "image" and arguments.sequence_length > MAX_MOTION_FRAMES:
        raise ConfigError(
            f"--sequence_length {arguments.sequence_length}: the motion modules know {MAX_MOTION_FRAMES} frames "
            f"at most; use --sequence_length {MAX_MOTION_FRAMES} and a larger --frame_stride"
        )
    if arguments.training_stage == "motion" and arguments.train_data_format == "image":
        raise ConfigError("--training_stage motion trains on clips: use --train_data_format video")
    if arguments.check_data and arguments.dry_run:
        raise ConfigError("--check_data and --dry_run: give one of them")


def settings_without_effect(arguments: TrainingArguments) -> list[str]:
    """Return a line for each changed setting that does nothing in this combination."""
    stage, scheduler = arguments.training_stage, arguments.lr_scheduler
    dead = {
        "sequence_length": (stage == "image", "the image stage trains on single frames"),
        "frame_stride": (stage == "image", "the image stage trains on single frames"),
        "motion_module_path": (stage == "image", "the image stage has no motion modules"),
        "pretrained_lr_scale": (
            stage == "motion" and not arguments.motion_module_path and not arguments.champ_checkpoint_dir,
            "no motion weights came pretrained",
        ),
        "reference_dropout": (stage == "motion" and arguments.reference_dropout == 0.0, "it is zero"),
        "lr_num_cycles": (scheduler != "cosine_with_restarts", "--lr_scheduler is not cosine_with_restarts"),
        "lr_power": (scheduler != "polynomial", "--lr_scheduler is not polynomial"),
        "ema_decay": (not arguments.use_ema, "--use_ema is off"),
        "num_train_epochs": (arguments.max_train_steps is not None, "--max_train_steps overrides it"),
    }
    return [
        f"--{name} has no effect: {reason}"
        for name, (is_dead, reason) in dead.items()
        if is_dead and getattr(arguments, name) != default_of(name)
    ]


# ---- YAML and types -------------------------------------------------------------------------------------


def _argparse_kind(annotation) -> dict:
    """Return argparse keywords for a field's type: bool, int, float, str, X | None, list[X]."""
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(annotation) is list:
        return {"type": typing.get_args(annotation)[0], "nargs": "*" if annotation == list[str] else "+"}
    scalars = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    if not scalars:
        return {"type": annotation}

    def optional(text):
        return None if text.lower() in ("none", "null") else scalars[0](text)

    optional.__name__ = scalars[0].__name__  # argparse names the type in its message
    return {"type": optional}


def _read_yaml(path: str) -> dict:
    """Return the keys of a YAML file under the flags' own names. Raises ConfigError for an unknown key."""
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file") from None
    except Exception as error:  # whatever the YAML parser finds
        raise ConfigError(
            f"--config {path}: not a YAML file of flags: {' '.join(str(error).split())}"
        ) from None
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"--config {path}: expected lines of NAME: VALUE")
    settings = {}
    for key, value in OmegaConf.to_container(loaded, resolve=True).items():
        name = ALIASES.get(key, key)
        if name not in FLAGS:
            raise ConfigError(f"--config {path}: unknown key {key!r}{_nearest(str(key))}")
        if name in settings:
            raise ConfigError(f"--config {path}: {key!r} is given twice (it is also called {name!r})")
        is_list = typing.get_origin(FLAGS[name].type) is list
        settings[name] = [value] if is_list and not isinstance(value, list) else value
    return settings


def _merge(settings: dict, given: dict, config_path: str | None) -> TrainingArguments:
    """Return defaults, overwritten by the YAML's settings, overwritten by the flags given; types checked."""
    schema = OmegaConf.structured(TrainingArguments)
    for source, values in ((f"--config {config_path}", settings), ("command line", given)):
        for name, value in values.items():
            try:
                OmegaConf.update(schema, name, value, merge=False)
            except OmegaConfBaseException as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"{source}: {name}: {value!r}: {reason}") from None
    return OmegaConf.to_object(schema)


def _nearest(name: str, prefix: str = "") -> str:
    matches = difflib.get_close_matches(name, [*FLAGS, *ALIASES, "config"], n=1, cutoff=0.5)
    return f"; did you mean {prefix}{matches[0]}?" if matches else ""


def _shown(value) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value) or "none"
    return "none" if value is None else str(value)


# ---- Checks ---------------------------------------------------------------------------------------------


def _check_choices(arguments: TrainingArguments) -> None:
    for name, entry in FLAGS.items():
        choices, value = entry.metadata["choices"], getattr(arguments, name)
        if choices and value not in choices:
            raise ConfigError(f"--{name} {value}: choose one of {', '.join(choices)}")


def _check_ranges(arguments: TrainingArguments) -> None:
    at_least_one = (
        "sequence_length",
        "frame_stride",
        "train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_train_steps",
        "guidance_embedding_channels",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "validation_steps",
        "num_validation_clips",
        "num_inference_steps",
        "lr_num_cycles",
    )
    not_negative = (
        "num_workers",
        "lr_warmup_steps",
        "noise_offset",
        "adam_weight_decay",
        "pretrained_lr_scale",
        "seed",
    )
    positive = (
        "learning_rate",
        "max_grad_norm",
        "adam_epsilon",
        "lr_power",
        "guidance_scale",
        "snr_gamma",
        "music_feature_fps",
    )
    shares = ("reference_dropout", "adam_beta1", "adam_beta2", "ema_decay", "guidance_dropout")
    rules = (
        (at_least_one, lambda value: value >= 1, "must be at least 1"),
        (not_negative, lambda value: value >= 0, "must not be negative"),
        (positive, lambda value: value > 0, "must be above 0"),
        (shares, lambda value: 0 <= value < 1, "must be at least 0 and below 1"),
    )
    for names, rule, message in rules:
        for name in names:
            value = getattr(arguments, name)
            values = value if isinstance(value, list) else [value]
            if any(item is not None and not rule(item) for item in values):
                raise ConfigError(f"--{name} {_shown(value)}: {message}")


def _check_guidance(arguments: TrainingArguments) -> None:
    types, channels = arguments.guidance_types, arguments.guidance_input_channels
    if not types:
        raise ConfigError("--guidance_types: give at least one type, for example --guidance_types music pose")
    if len(set(types)) != len(types):
        raise ConfigError(f"--guidance_types {_shown(types)}: a type is named twice")
    if len(types) != len(channels):
        example = " ".join("134" if name == "pose" else "35" if name == "music" else "3" for name in types)
        raise ConfigError(
            f"--guidance_types has {len(types)} ({_shown(types)}) but --guidance_input_channels has "
            f"{len(channels)} ({_shown(channels)}): give one number per type in the same order, for example "
            f"--guidance_types {_shown(types)} --guidance_input_channels {example}"
        )
    if any(count < 1 for count in channels):
        raise ConfigError(f"--guidance_input_channels {_shown(channels)}: must be at least 1")
    if len(arguments.guidance_dropout) not in (1, len(types)):
        raise ConfigError(
            f"--guidance_dropout {_shown(arguments.guidance_dropout)}: give one number, or one per type "
            f"({_shown(types)})"
        )
