"""Where a run starts: which checkpoint, at which step, and what may have changed since it was written."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator

from system.errors import ConfigError
from system.whole_files import tidy
from training.settings.fields import RunSettings

from .folders import SAVED_NAMES, checkpoint_folders, fault_of, list_checkpoints
from .saving import TrainerState, read_state

# Another value of these is another model or optimizer: its weights do not fit.
FIXED_SETTINGS = (
    "training_stage", "guidance_types", "guidance_input_channels", "guidance_embedding_channels",
    "guidance_block_out_channels", "prediction_type", "use_8bit_adam",
    "hidden_size", "num_layers", "num_heads", "frame_rate", "music_groups", "beat_channel",  # of dances
)  # fmt: skip
# Given or not, these decide which weights are pretrained: another grouping of the optimizer's state.
FIXED_WHETHER_GIVEN = ("motion_module_path", "champ_checkpoint_dir")
FREE_SETTINGS = (
    "resume_from_checkpoint", "num_workers", "local_rank", "dry_run", "cache_dir", "push_to_hub",
    "hub_model_id",
)  # fmt: skip
# They name the weights that never train.
BASE_SETTINGS = (
    "pretrained_model_name_or_path", "revision", "variant", "vae_model_name_or_path",
    "image_encoder_name_or_path",
)  # fmt: skip
PART_SETTINGS = {"vae": "vae_model_name_or_path", "image_encoder": "image_encoder_name_or_path"}  # their own
CONSEQUENCES = {
    "pretrained_model_name_or_path": "what is trained stays as it was, VAE and image encoder are new",
    "vae_model_name_or_path": "it must encode as the old one did",
    "image_encoder_name_or_path": "it must encode as the old one did",
    "seed": "the order of the samples and the noise are others from here on",
    "train_data_dir": "the run goes on at its place in the order of the new samples",
    "use_ema": "the averages of the checkpoint are not used",
}


def find_start(
    accelerator: Accelerator, settings: RunSettings, clips_per_step: int, frozen_digests: Mapping[str, str]
) -> tuple[Path | None, TrainerState, list[str]]:
    """Return the checkpoint to resume from or None, where to start, and lines for the user.

    `frozen_digests` is {part that never trains: digest of its weights}. Every process calls it; what a run
    that was killed in a save has left is cleared away first. Raises ConfigError where a change since the
    checkpoint means another model.
    """
    output_dir = Path(settings.output_dir)
    lines = tidy(output_dir, SAVED_NAMES) if accelerator.is_main_process else []
    accelerator.wait_for_everyone()
    checkpoint = find_checkpoint(settings.resume_from_checkpoint, output_dir)
    if settings.resume_from_checkpoint == "latest":
        lines += skipped_as_broken(output_dir, checkpoint)
    if checkpoint is not None:
        check_base(checkpoint, settings, frozen_digests)
    state, changes = start_state(checkpoint, settings, clips_per_step)
    state.frozen_digests = dict(frozen_digests)
    return checkpoint, state, lines + changes


def check_base(checkpoint: Path, settings: RunSettings, frozen_digests: Mapping[str, str]) -> None:
    """Raise ConfigError when the base at the same path holds other weights than the checkpoint's run had."""
    state = read_state(checkpoint)
    named = [name for name in BASE_SETTINGS if name in state.settings]
    today = asdict(settings)
    if any(state.settings[name] != today[name] for name in named):
        return  # a change that was asked for: `start_state` tells of it
    fault = base_fault(state, frozen_digests)
    if fault is not None:
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: {fault}. It is left as it is: choose another "
            f"--output_dir, or move {checkpoint.parent} away"
        )


def base_fault(state: TrainerState, frozen_digests: Mapping[str, str]) -> str | None:
    """Return which parts of the base, found where the checkpoint's run had them, are others now, or None."""
    changed, paths = changed_parts(state, frozen_digests), state.settings
    parts = (f"{part} ({paths.get(PART_SETTINGS.get(part)) or paths[BASE_SETTINGS[0]]})" for part in changed)
    return f"is of another base: {', '.join(parts)} had other weights then" if changed else None


def changed_parts(state: TrainerState, frozen_digests: Mapping[str, str]) -> list[str]:
    """Return the parts that never train whose weights are others than a checkpoint's, as far as it says."""
    known = state.frozen_digests.items()
    return [part for part, digest in known if frozen_digests.get(part, digest) != digest]


def find_checkpoint(resume_from_checkpoint: str | None, output_dir: Path) -> Path | None:
    """Return the folder to resume from, or None to start afresh. Raises ConfigError for a wrong path."""
    if resume_from_checkpoint is None:
        return None
    if resume_from_checkpoint == "latest":
        checkpoints = list_checkpoints(output_dir)
        return checkpoints[-1] if checkpoints else None
    for path in (Path(resume_from_checkpoint), output_dir / resume_from_checkpoint):
        if path.is_dir():
            read_state(path)
            return path
    names = ", ".join(path.name for path in list_checkpoints(output_dir)) or "no checkpoint"
    raise ConfigError(
        f"--resume_from_checkpoint {resume_from_checkpoint}: no such folder; {output_dir} has {names}"
    )


def skipped_as_broken(output_dir: Path, chosen: Path | None) -> list[str]:
    """Return a line for each broken checkpoint that is newer than the one chosen."""
    newest_first = [path for _, path in reversed(checkpoint_folders(output_dir))]
    newer = newest_first[: newest_first.index(chosen)] if chosen else newest_first
    going_on = f"going on from {chosen.name}" if chosen else "no checkpoint is whole: starting from step 0"
    return [f"warning: {path.name} is broken: {fault_of(path)}; {going_on}" for path in newer]


def start_state(
    checkpoint: Path | None, settings: RunSettings, clips_per_step: int = 0
) -> tuple[TrainerState, list[str]]:
    """Return where to start, and a line for each setting that changed since the checkpoint.

    Raises ConfigError where a change means another model.
    """
    today = asdict(settings)
    if checkpoint is None:
        return TrainerState(clips_per_step=clips_per_step, settings=today), []
    state, changed = read_state(checkpoint), []
    for name, before in state.settings.items():
        now = today.get(name, before)
        if now == before:
            continue
        is_another_start = name in FIXED_WHETHER_GIVEN and None in (now, before)
        if name in FIXED_SETTINGS or is_another_start:
            says_no_base = BASE_SETTINGS[0] in state.settings and not state.frozen_digests
            perhaps = ", perhaps from another base (it does not say which)" if says_no_base else ""
            raise ConfigError(
                f"--resume_from_checkpoint {checkpoint}: trained with {name} = {before}, now it is {now}"
                f"{perhaps}. It is left as it is: set it back, choose another --output_dir, or move "
                f"{checkpoint.parent} away"
            )
        if name not in FREE_SETTINGS:
            why = f" ({CONSEQUENCES[name]})" if name in CONSEQUENCES else ""
            changed.append(f"changed since the checkpoint: {name} was {before}, now it is {now}{why}")
    if state.clips_per_step not in (0, clips_per_step):
        changed.append(
            f"changed since the checkpoint: a step saw {state.clips_per_step} clips, now {clips_per_step} "
            "(processes x batch size x accumulation): losses compare by samples, not by steps"
        )
    state.settings, state.clips_per_step, state.best = today, clips_per_step, {}
    return state, changed
