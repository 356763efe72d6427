"""The model of a checkpoint, ready to sample: for a run that has no final/ yet, or an earlier step of it."""

import dataclasses
from pathlib import Path

from accelerate.utils import SAFE_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from models import ChampModel, ModelError, create_guidance_encoders
from pipelines.champ_pipeline import ChampPipeline
from system.errors import ConfigError
from system.user_code import import_user_modules
from training.champ import base_digests, frozen_digests, load_frozen, load_model
from training.objective import make_noise_scheduler
from training.optimization import trained_parameters
from training.settings.fields import TrainingArguments
from training.stages import STAGES, freeze_for_stage, lora_settings

from .folders import BEST_NAME, CHECKPOINT_NAME, fault_of
from .resuming import base_fault
from .saving import EMA_FILE, load_kept, read_state

MUSIC_PREFIX = "guidance_encoders.encoders.music."


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is meant to be a checkpoint of a run."""
    is_named_so = CHECKPOINT_NAME.fullmatch(path.name) is not None or path.name == BEST_NAME
    return is_named_so and not (path / "model_index.json").is_file()


def pipeline_of_checkpoint(path: Path) -> ChampPipeline:
    """Return the pipeline that the run would write as final/, had it ended at this checkpoint.

    With the averaged weights where the run keeps them. The base is read anew, from where the run had it.
    Raises ConfigError where the checkpoint is not whole, ModelError where the base is not there any more, or
    is another one.
    """
    if not path.is_dir():
        raise ConfigError(f"--model_path {path}: no such folder")
    if (fault := fault_of(path)) is not None:
        raise ConfigError(f"--model_path {path}: not a whole checkpoint: {fault}; take another")
    settings = settings_of(path)
    import_user_modules(settings.guidance_modules)
    try:
        frozen = load_frozen(settings)
        check_base(path, frozen_digests(frozen))
        weights = load_file(path / SAFE_WEIGHTS_NAME)
        model = load_model(settings, encoders_of(settings, weights))
        stage = STAGES[settings.training_stage]
        freeze_for_stage(model, stage, lora_settings(settings, stage))
        check_base(path, base_digests(model))
        load_kept(model, weights)
        if (path / EMA_FILE).is_file():
            load_averages(model, path / EMA_FILE)
    except ModelError as error:
        fix = "paths are those of the training: start this command in the folder where that was started"
        raise ModelError(f"--model_path {path}: the base of its run: {error}; {fix}") from error
    except (RuntimeError, KeyError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"--model_path {path}: its weights cannot be loaded: {reason}") from error
    single_frames = settings.trains_on_images
    return ChampPipeline.from_parts(
        model, frozen, make_noise_scheduler(settings.prediction_type),
        height=settings.resolution[0], width=settings.resolution[-1], fit=settings.fit,
        sequence_length=1 if single_frames else settings.sequence_length,
        frame_stride=1 if single_frames else settings.frame_stride,
    )  # fmt: skip


def settings_of(path: Path) -> TrainingArguments:
    """Return the settings of a checkpoint's run. Raises ConfigError where they are of another trainer."""
    known = read_state(path).settings
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    if "pretrained_model_name_or_path" not in known:
        raise ConfigError(f"--model_path {path}: is not a checkpoint of train_guidance.py; give its final/")
    return TrainingArguments(**{name: value for name, value in known.items() if name in names})


def check_base(path: Path, digests: dict[str, str]) -> None:
    """Raise ConfigError when parts that never train are not those that the checkpoint's run had."""
    fault = base_fault(read_state(path), digests)
    if fault is not None:
        raise ConfigError(f"--model_path {path}: {fault}: put those back there, or give the run's final/")


def encoders_of(settings: TrainingArguments, weights: dict[str, Tensor]) -> dict:
    """Return new guidance encoders of the kinds that the weights are of: 3-D music has a spatial one."""
    of_music = [value for name, value in weights.items() if name.startswith(MUSIC_PREFIX)]
    return create_guidance_encoders(
        settings.guidance_types,
        settings.guidance_input_channels,
        settings.guidance_embedding_channels,
        spatial_music=any(value.ndim == 4 for value in of_music),
        block_out_channels=tuple(settings.guidance_block_out_channels),
    )


def load_averages(model: ChampModel, path: Path) -> None:
    """Put the averaged weights of a run into its trained parameters."""
    with safe_open(path, framework="pt") as file:
        for place, parameter in enumerate(trained_parameters(model)):
            parameter.data.copy_(file.get_tensor(str(place)))
