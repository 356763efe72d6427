"""What a run is made of, built from its settings: accelerator, model, frozen encoders, validation split."""

import importlib.util
import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import diffusers
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from diffusers import DDIMScheduler
from torch import nn

from caching.feature_encoding import FeatureEncoder
from models import ChampModel, FrozenEncoders, ImageGuidanceEncoder, ModelError, create_guidance_encoders
from models.champ.weights import load_motion_modules, motion_keys_to_diffusers, read_weights
from models.frozen import weights_digest
from pipelines.champ_pipeline import ChampPipeline
from system.errors import ConfigError
from training.checkpoints.folders import written_aside
from training.execution import compilation
from training.execution.sharding import whole_weights
from training.settings.fields import TrainingArguments, default_of

from .objective import DiffusionObjective, make_noise_scheduler
from .stages import STAGES, freeze_for_stage

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # of the frozen encoders
HELD_OUT_SHARE = 20  # one video in so many
MAX_HELD_OUT = 8
MIN_VIDEOS_TO_HOLD_OUT = 10


def make_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Return the accelerator, for one process or as many as a launcher started. Raises ConfigError."""
    if arguments.local_rank >= 0 and "RANK" in os.environ:  # an old launcher, which sets all but LOCAL_RANK
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    if arguments.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("--mixed_precision fp16 needs a GPU: use --mixed_precision bf16 or no")
    check_packages(arguments)
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("1", "true"):
            raise ConfigError(
                f"the accelerate configuration asks for {name}, which this trainer cannot run: use one of "
                "configs/accelerate/ (zero2.yaml and fsdp.yaml share out what DeepSpeed's ZeRO does)"
            )
    quiet_libraries()
    if arguments.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    num_launched = int(os.environ.get("WORLD_SIZE", 1))
    accelerator = Accelerator(
        # Several processes without a GPU talk by gloo; accelerate wants to be told, else each trains alone.
        cpu=num_launched > 1 and not torch.cuda.is_available(),
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        kwargs_handlers=[
            # The other processes wait while the main one checks data, validates or downloads.
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # no second copy of the gradients
        ],
    )
    if accelerator.num_processes != num_launched:
        raise ConfigError(
            f"the launcher started {num_launched} processes (WORLD_SIZE), but accelerate found "
            f"{accelerator.num_processes}: start them with torchrun or `accelerate launch --multi_gpu`"
        )
    return accelerator


def check_packages(arguments: TrainingArguments) -> None:
    """Raise ConfigError for a package that is asked for and not installed, before anything takes time."""
    asked_for = {
        "xformers": arguments.enable_xformers_memory_efficient_attention,
        "bitsandbytes": arguments.use_8bit_adam and not arguments.dry_run,  # it only counts the states
        "wandb": arguments.report_to == "wandb",
    }
    flags = {
        "xformers": "--enable_xformers_memory_efficient_attention",
        "bitsandbytes": "--use_8bit_adam",
        "wandb": "--report_to wandb",
    }
    for name, is_asked_for in asked_for.items():
        if is_asked_for and importlib.util.find_spec(name) is None:
            raise ConfigError(f"{flags[name]} needs {name}: run `pip install {name}`, or leave the flag out")


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


def quiet_libraries() -> None:
    """Turn off the bars for reading and writing small files, which tear our own; downloads keep theirs."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def build_model(arguments: TrainingArguments, condition_shapes: dict[str, Sequence[int]]) -> ChampModel:
    """Return the model of a stage, its frozen parameters frozen.

    `condition_shapes` is {type: shape of one frame's condition}: 3-D music goes to a spatial encoder.
    """
    stage = STAGES[arguments.training_stage]
    encoders = create_guidance_encoders(
        arguments.guidance_types,
        arguments.guidance_input_channels,
        arguments.guidance_embedding_channels,
        spatial_music=len(condition_shapes.get("music", ())) == 3,
        block_out_channels=tuple(arguments.guidance_block_out_channels),
    )
    base = arguments.pretrained_model_name_or_path
    if arguments.champ_checkpoint_dir is not None:
        model = ChampModel.from_champ_checkpoint(
            base, arguments.champ_checkpoint_dir, encoders, motion_modules=stage.has_motion_modules,
            revision=arguments.revision, variant=arguments.variant,
        )  # fmt: skip
        if arguments.motion_module_path is not None and stage.has_motion_modules:
            # As CHAMP's second stage begins: the image stage's weights and AnimateDiff's motion modules.
            _load_motion_modules(model, arguments.motion_module_path)
    else:
        model = ChampModel.from_pretrained_sd(
            base, encoders, arguments.motion_module_path if stage.has_motion_modules else None,
            motion_modules=stage.has_motion_modules, revision=arguments.revision, variant=arguments.variant,
        )  # fmt: skip
    return ready_for_stage(model, arguments)


def ready_for_stage(model: ChampModel, arguments: TrainingArguments) -> ChampModel:
    """Return the model with the stage's frozen parameters frozen, and what saves time or memory turned on."""
    freeze_for_stage(model, STAGES[arguments.training_stage])
    model.enable_gradient_checkpointing(arguments.gradient_checkpointing)
    if arguments.compile and arguments.gradient_checkpointing == "selective":
        # The compiler chooses by itself what to compute again. Selective checkpointing would look into its
        # code, and keep tensors that the code overwrites.
        for unet in compilation.compiled_unets(model, single_frames=trains_on_images(arguments)):
            unet.disable_gradient_checkpointing()
    if arguments.enable_xformers_memory_efficient_attention:
        model.set_attention_backend("xformers")
    return model


def check_start(arguments: TrainingArguments, model: ChampModel) -> None:
    """Raise ConfigError where the weights to start from do not fit what is to be trained."""
    start = arguments.champ_checkpoint_dir
    scheduler_path = Path(start or "", "scheduler", "scheduler_config.json")  # of the final/ of a run
    if start is not None and scheduler_path.is_file():
        before = json.loads(scheduler_path.read_text()).get("prediction_type")
        if before != arguments.prediction_type:
            raise ConfigError(
                f"--champ_checkpoint_dir {start}: was trained with --prediction_type {before}, now it is "
                f"{arguments.prediction_type}: give the same"
            )
    if "guidance_encoders" not in STAGES[arguments.training_stage].trained_parts:
        for name in arguments.guidance_types:
            if not _is_pretrained(model, name):
                raise ConfigError(
                    f"--training_stage {arguments.training_stage} does not train guidance encoders, and "
                    f"--champ_checkpoint_dir {start} has none for {name}: leave {name} out of "
                    "--guidance_types, or train with it in another stage first"
                )


def model_settings_without_effect(arguments: TrainingArguments, model: ChampModel) -> list[str]:
    """Return a line for each changed setting that no part of this model reads."""
    name, encoders = "guidance_block_out_channels", model.guidance_encoders.encoders.values()
    is_changed = getattr(arguments, name) != default_of(name)
    if is_changed and not any(isinstance(encoder, ImageGuidanceEncoder) for encoder in encoders):
        return [f"--{name} has no effect: no guidance type has a spatial encoder"]
    return []


def _is_pretrained(model: nn.Module, guidance_type: str) -> bool:
    prefix = f"guidance_encoders.encoders.{guidance_type}."
    return any(name.startswith(prefix) for name in model.pretrained_names)


def _load_motion_modules(model: ChampModel, path: str) -> None:
    state = motion_keys_to_diffusers(read_weights(path), path)
    untouched = load_motion_modules(model.unet, state, path)
    loaded = model.motion_parameter_names() - {f"unet.{name}" for name in untouched}
    model.pretrained_names = model.pretrained_names | loaded


def load_frozen(arguments: TrainingArguments) -> FrozenEncoders:
    """Return VAE and image encoder, which never train."""
    return FrozenEncoders.from_pretrained(
        arguments.pretrained_model_name_or_path,
        vae_model_name_or_path=arguments.vae_model_name_or_path,
        image_encoder_name_or_path=arguments.image_encoder_name_or_path,
        revision=arguments.revision,
        variant=arguments.variant,
    )


def set_feature_statistics(model: nn.Module, statistics: dict) -> list[str]:
    """Give encoders of {type: (mean [D], std [D])} the statistics of the training data; return the types.

    An encoder that came pretrained keeps the statistics that it was trained with.
    """
    done = []
    for name, (mean, std) in statistics.items():
        encoder = model.guidance_encoders.encoders[name]
        if hasattr(encoder, "set_feature_statistics") and not _is_pretrained(model, name):
            encoder.set_feature_statistics(torch.as_tensor(mean), torch.as_tensor(std))
            done.append(name)
    return done


def split_for_validation(sample_ids: Sequence[str]) -> tuple[list[int], list[int], str]:
    """Return training indices, validation indices and what to tell the user, without --validation_data_dir.

    The choice depends on the names alone: it stays when a run is resumed and hardly moves with new videos.
    """
    everything = list(range(len(sample_ids)))
    if len(sample_ids) < MIN_VIDEOS_TO_HOLD_OUT:
        note = (
            f"validation uses training clips: {len(sample_ids)} video(s) are too few to hold one out; "
            "give --validation_data_dir for numbers that mean something"
        )
        return everything, everything, note
    num_held_out = min(MAX_HELD_OUT, max(1, len(sample_ids) // HELD_OUT_SHARE))
    by_name = sorted(
        everything, key=lambda index: (zlib.crc32(sample_ids[index].encode()), sample_ids[index])
    )
    held_out = sorted(by_name[:num_held_out])
    names = ", ".join(sample_ids[index] for index in held_out)
    kept = [index for index in everything if index not in held_out]
    return kept, held_out, f"held out of training for validation: {names}"


def clips_per_step(arguments: TrainingArguments, num_processes: int) -> int:
    """Return how many clips one optimizer step sees, over all processes."""
    return num_processes * arguments.train_batch_size * arguments.gradient_accumulation_steps


def make_objective(arguments: TrainingArguments, extra_loss: Callable | None) -> DiffusionObjective:
    return DiffusionObjective(
        make_noise_scheduler(arguments.prediction_type),
        snr_gamma=arguments.snr_gamma,
        noise_offset=arguments.noise_offset,
        reference_dropout=arguments.reference_dropout,
        guidance_dropout=dropout_by_type(arguments),
        extra_loss=extra_loss,
    )


def dropout_by_type(arguments: TrainingArguments) -> dict[str, float]:
    """Return {guidance type: its dropout}; one number counts for every type."""
    shares, types = arguments.guidance_dropout, arguments.guidance_types
    return dict(zip(types, shares if len(shares) == len(types) else shares * len(types), strict=True))


def dataset_settings(arguments: TrainingArguments) -> dict:
    """Return the dataset's keywords that follow from the settings; the image stage sees single frames."""
    sides, is_image = arguments.resolution, trains_on_images(arguments)
    return {
        "resolution": sides[0] if len(sides) == 1 else tuple(sides),
        "sequence_length": 1 if is_image else arguments.sequence_length,
        "frame_stride": 1 if is_image else arguments.frame_stride,
        "music_feature_fps": arguments.music_feature_fps,
        "seed": arguments.seed,
        "data_format": "image" if is_image else "video",
        "fit": arguments.fit,
        "center_crop": arguments.center_crop or arguments.cache_latents,  # a cache has one crop
        "random_flip": arguments.random_flip,
    }


def cache_dir(arguments: TrainingArguments) -> Path:
    """Return the folder of the latent cache: with all else that the run writes, unless runs share one."""
    return Path(arguments.cache_dir or Path(arguments.output_dir, "latent_cache"))


def encoded_by(arguments: TrainingArguments, frozen: FrozenEncoders) -> dict[str, str]:
    """Return what decides the numbers that the frozen encoders give."""
    return {**frozen.digests(), "precision": _precision(arguments)}


def _precision(arguments: TrainingArguments) -> str:
    tf32 = " with TF32" if arguments.allow_tf32 else ""
    return str(PRECISIONS[arguments.mixed_precision]).removeprefix("torch.") + tf32


def features_made_by(arguments: TrainingArguments, model: ChampModel) -> dict[str, str | list[str]]:
    """Return what decides the numbers that the model's frozen parts give, beside their input."""
    encoders = model.guidance_encoders
    return {
        "reference_unet": weights_digest(model.reference_unet), "guidance_encoders": weights_digest(encoders),
        "types": encoders.frame_by_frame_types, "precision": _precision(arguments),
    }  # fmt: skip


def feature_encoder(
    arguments: TrainingArguments, model: ChampModel, frozen: FrozenEncoders, accelerator: Accelerator
) -> FeatureEncoder:
    """Return what makes the feature cache of a run."""
    return FeatureEncoder(
        model, accelerator, batch_shape=(arguments.train_batch_size, arguments.sequence_length),
        latent_size=latent_size(arguments, frozen), dtype=PRECISIONS[arguments.mixed_precision],
    )  # fmt: skip


def latent_size(arguments: TrainingArguments, frozen: FrozenEncoders) -> tuple[int, int]:
    """Return (h, w) of the frames' latents."""
    height, width = arguments.resolution[0], arguments.resolution[-1]
    return height // frozen.latent_factor, width // frozen.latent_factor


def latent_bytes(arguments: TrainingArguments, frozen: FrozenEncoders) -> int:
    """Return the bytes that the latent cache keeps of a frame's latents."""
    size = latent_size(arguments, frozen)
    values = frozen.num_moments * frozen.vae.config.latent_channels * math.prod(size)
    return values * PRECISIONS[arguments.mixed_precision].itemsize


def trains_on_images(arguments: TrainingArguments) -> bool:
    return arguments.training_stage == "image" or arguments.train_data_format == "image"


def save_final(
    accelerator: Accelerator, arguments: TrainingArguments, model: ChampModel, scheduler: DDIMScheduler,
    frame_rate: float,
) -> None:  # fmt: skip
    """Write output_dir/final, a ChampPipeline that knows how it was trained; every process calls it.

    Raises SaveError when it cannot be written; a final/ that was there before still is.
    """

    def write(folder: Path) -> None:
        trained_on = dataset_settings(arguments)
        try:
            # Read anew: training may have the frozen parts in half precision.
            frozen = load_frozen(arguments)
        except ModelError as error:
            raise OSError(str(error)) from error
        pipeline = ChampPipeline.from_parts(
            model, frozen, scheduler,
            frame_rate=float(Fraction(frame_rate).limit_denominator(1001)),  # 24, not 24.000000000000004
            height=arguments.resolution[0], width=arguments.resolution[-1],
            **{name: trained_on[name] for name in ("sequence_length", "frame_stride", "fit")},
        )  # fmt: skip
        pipeline.save_pretrained(folder)

    # VAE and image encoder come on top: a disk that they fill is noticed while they are written.
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    with whole_weights(model):
        with written_aside(accelerator, Path(arguments.output_dir) / "final", num_bytes) as save:
            save(write, main_only=True)


def check_sizes(arguments: TrainingArguments, frozen: FrozenEncoders) -> None:
    """Raise ConfigError when the VAE cannot halve the frames as often as it wants to."""
    factor = frozen.latent_factor
    if any(side % factor for side in arguments.resolution):
        sides = " ".join(str(side) for side in arguments.resolution)
        raise ConfigError(f"--resolution {sides}: this VAE needs multiples of {factor}")
