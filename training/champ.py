"""CHAMP as a task for the loop: its models, its loss, its validation, its final model."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn

from caching.batch_encoding import encode_batch
from caching.source_digests import values_digest
from models import ChampModel, FrozenEncoders, ImageGuidanceEncoder
from models.champ.weights import load_motion_modules, motion_keys_to_diffusers, read_weights
from models.lora import LoraSettings, base_digest, has_lora, save_lora
from pipelines.champ_pipeline import ChampPipeline
from system.errors import ConfigError, ModelError

from .data import TrainingData
from .execution import compilation
from .loop import Task
from .objective import DiffusionObjective, mix_seed
from .publishing.card import ModelDescription
from .publishing.champ import describe
from .run_log import RunLog
from .settings.fields import ExecutionSettings, GuidanceSettings, ModelSettings, TrainingArguments, default_of
from .stages import STAGES, freeze_for_stage, lora_settings, optimizer_groups, trained_parts
from .step import MicroBatch
from .validation.first_batch import show_first_batch
from .validation.validator import Validator


class ChampTask(Task):
    """A ChampModel with its frozen encoders and its objective, trained on `data`.

    `validator` is set before the first validation; `shows_first_batch` lets the first loss draw its batch.
    """

    def __init__(
        self, arguments: TrainingArguments, data: TrainingData | None, model: ChampModel,
        frozen: FrozenEncoders, objective: DiffusionObjective,
    ):  # fmt: skip
        self.arguments, self.data = arguments, data
        self.model, self.frozen, self.objective = model, frozen, objective
        self.validator: Validator | None = None
        self.shows_first_batch: Callable | None = None

    def loss(self, model: nn.Module, batch: dict) -> MicroBatch:
        """Return the loss of a batch of B clips, its noise drawn from (seed, position)."""
        seed, positions = self.arguments.seed, batch["position"]
        # Another seed than the noise's below: the VAE's own noise must not be the same numbers.
        vae_seeds = [mix_seed(seed, 1, position) for position in positions]
        latents, conditions = encode_batch(self.frozen, batch, vae_seeds)  # [B, F, 4, h, w]
        if self.shows_first_batch is not None:
            self.shows_first_batch(batch, latents, conditions)
            self.shows_first_batch = None
        draw = self.objective.draw(latents, [(seed, position) for position in positions])

        def repeat(model: nn.Module) -> torch.Tensor:
            return self.objective(model, latents, conditions, draw)

        return MicroBatch(batch["sample_id"], repeat(model), repeat, draw.timesteps)

    def show_first_batch(self, batch: dict, latents: torch.Tensor, conditions: dict, log: RunLog) -> None:
        """Draw the first batch as the networks see it, into samples/ and the log."""
        shown = {**conditions, "guidance": self.data.all_guidance(batch)}
        with self.frozen.on(latents.device):
            show_first_batch(
                self.frozen, latents, shown, batch["sample_id"], Path(self.arguments.output_dir), log
            )

    def validate(self, log: RunLog, step: int) -> dict[str, float]:
        return self.validator.run(self.model, log, step)

    def start_afresh(self) -> None:
        set_feature_statistics(self.model, self.data.train_set.feature_statistics(self.data.train_indices))

    def trained_parts(self) -> dict[str, list[nn.Parameter]]:
        return trained_parts(self.model)

    def optimizer_groups(self, learning_rate: float, pretrained_lr_scale: float) -> list[dict]:
        return optimizer_groups(self.model, learning_rate, pretrained_lr_scale)

    def describe(self) -> ModelDescription:
        return describe(self.arguments, self.data)

    def write_final(self, folder: Path) -> None:
        """Write a ChampPipeline that knows how it was trained; of adapters, these alone."""
        arguments, keywords = self.arguments, self.data.clip_keywords
        lora = lora_settings(arguments, STAGES[arguments.training_stage])
        if lora is not None:
            save_lora(self.model, folder, whole_encoders=lora.trains_encoders)
            return
        try:
            # Read anew: training may have the frozen parts in half precision.
            frozen = load_frozen(arguments)
        except ModelError as error:
            raise OSError(str(error)) from error
        pipeline = ChampPipeline.from_parts(
            self.model, frozen, self.objective.scheduler,
            # 24, not 24.000000000000004
            frame_rate=float(Fraction(self.data.frame_rate).limit_denominator(1001)),
            height=arguments.resolution[0], width=arguments.resolution[-1],
            **{name: keywords[name] for name in ("sequence_length", "frame_stride", "fit")},
            music_recipe=self.data.music_recipe, pose_recipe=self.data.pose_recipe,
        )  # fmt: skip
        pipeline.save_pretrained(folder)


# ---- models ----


def load_frozen(settings: ModelSettings) -> FrozenEncoders:
    """Return VAE and image encoder, which never train."""
    return FrozenEncoders.from_pretrained(
        settings.pretrained_model_name_or_path,
        vae_model_name_or_path=settings.vae_model_name_or_path,
        image_encoder_name_or_path=settings.image_encoder_name_or_path,
        revision=settings.revision,
        variant=settings.variant,
    )


def frozen_digests(frozen: FrozenEncoders) -> dict[str, str]:
    """Return {part: digest of its weights}, before they change precision."""
    return {name: values_digest(part) for name, part in frozen.named_children()}


def base_digests(model: ChampModel) -> dict[str, str]:
    """Return {part: digest} of what adapters sit on and no training changes; without adapters nothing."""
    if not has_lora(model):
        return {}
    trained = {name.split(".")[0] for name, one in model.named_parameters() if one.requires_grad}
    return {
        part: known["digest"]
        for part, known in base_digest(model).items()
        if not (part.startswith("guidance_encoders.") and "guidance_encoders" in trained)
    }


def load_model(settings: ModelSettings, encoders: dict[str, nn.Module]) -> ChampModel:
    """Return the model of a stage from the weights that it starts from, with these guidance encoders."""
    has_motion_modules = STAGES[settings.training_stage].has_motion_modules
    motion_module_path = settings.motion_module_path if has_motion_modules else None
    base, files = settings.pretrained_model_name_or_path, {
        "revision": settings.revision, "variant": settings.variant
    }  # fmt: skip
    if settings.champ_checkpoint_dir is None:
        return ChampModel.from_pretrained_sd(
            base, encoders, motion_module_path, motion_modules=has_motion_modules, **files
        )
    model = ChampModel.from_champ_checkpoint(
        base, settings.champ_checkpoint_dir, encoders, motion_modules=has_motion_modules, **files
    )
    if motion_module_path is not None:
        # As CHAMP's second stage begins: the image stage's weights and AnimateDiff's motion modules.
        state = motion_keys_to_diffusers(read_weights(motion_module_path), motion_module_path)
        untouched = load_motion_modules(model.unet, state, motion_module_path)
        loaded = model.motion_parameter_names() - {f"unet.{name}" for name in untouched}
        model.pretrained_names = model.pretrained_names | loaded
    return model


def ready_for_stage(
    model: ChampModel, stage: str, execution: ExecutionSettings, *, single_frames: bool,
    lora: LoraSettings | None = None,
) -> ChampModel:  # fmt: skip
    """Return the model with the stage's frozen parameters frozen, and what saves time or memory turned on.

    With `lora` new adapters train, and what they sit on is frozen.
    """
    freeze_for_stage(model, STAGES[stage], lora)
    model.enable_gradient_checkpointing(execution.gradient_checkpointing)
    if execution.compile and execution.gradient_checkpointing == "selective":
        # The compiler chooses by itself what to compute again. Selective checkpointing would look into its
        # code, and keep tensors that the code overwrites.
        for unet in compilation.compiled_unets(model, single_frames=single_frames):
            unet.disable_gradient_checkpointing()
    if execution.enable_xformers_memory_efficient_attention:
        model.set_attention_backend("xformers")
    return model


def check_start(settings: ModelSettings, prediction_type: str, model: ChampModel, guidance_types) -> None:
    """Raise ConfigError where the weights to start from do not fit what is to be trained."""
    start = settings.champ_checkpoint_dir
    scheduler_path = Path(start or "", "scheduler", "scheduler_config.json")  # of the final/ of a run
    if start is not None and scheduler_path.is_file():
        before = json.loads(scheduler_path.read_text(encoding="utf-8")).get("prediction_type")
        if before != prediction_type:
            raise ConfigError(
                f"--champ_checkpoint_dir {start}: was trained with --prediction_type {before}, now it is "
                f"{prediction_type}: give the same"
            )
    if "guidance_encoders" not in STAGES[settings.training_stage].trained_parts:
        for name in guidance_types:
            if not _is_pretrained(model, name):
                raise ConfigError(
                    f"--training_stage {settings.training_stage} does not train guidance encoders, and "
                    f"--champ_checkpoint_dir {start} has none for {name}: leave {name} out of "
                    "--guidance_types, or train with it in another stage first"
                )


def check_sizes(resolution: list[int], frozen: FrozenEncoders) -> None:
    """Raise ConfigError when the VAE cannot halve the frames as often as it wants to."""
    factor = frozen.latent_factor
    if any(side % factor for side in resolution):
        sides = " ".join(str(side) for side in resolution)
        raise ConfigError(f"--resolution {sides}: this VAE needs multiples of {factor}")


def settings_without_effect_on(model: ChampModel, settings: GuidanceSettings) -> list[str]:
    """Return a line for each changed setting that no part of this model reads."""
    name, encoders = "guidance_block_out_channels", model.guidance_encoders.encoders.values()
    is_changed = getattr(settings, name) != default_of(name)
    if is_changed and not any(isinstance(encoder, ImageGuidanceEncoder) for encoder in encoders):
        return [f"--{name} has no effect: no guidance type has a spatial encoder"]
    return []


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


def _is_pretrained(model: nn.Module, guidance_type: str) -> bool:
    prefix = f"guidance_encoders.encoders.{guidance_type}."
    return any(name.startswith(prefix) for name in model.pretrained_names)
