"""Every setting of train_music_to_pose.py; what means the same as in train_guidance.py has the same name."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets.guidance.openpose import OPENPOSE_COUNTS
from system.errors import ConfigError
from training.settings.checks import check_guidance, check_values, dead_in_any_run, dead_lines
from training.settings.fields import RunSettings, flag

GROUPS_EXAMPLE = "--music_groups rhythm=0,33-34 timbre=1-20"
SHARES_EXAMPLE = "--group_dropout timbre=0.5 harmony=0.5"


@dataclass
class NetworkSettings:
    """The size of the transformer, and the time that it sees at once."""

    hidden_size: int = flag(320, "width of the transformer")
    num_layers: int = flag(6, "layers of the transformer")
    num_heads: int = flag(8, "attention heads of each layer")
    frame_rate: float | None = flag(
        None, "frames per second of the dances, one rate for all; none: that of the first sample"
    )
    sequence_length: int = flag(100, "frames in a window; 100 are 4 seconds at 25 per second")


@dataclass
class MusicSettings:
    """The two guidance types, and what the columns of the music features are."""

    guidance_types: list[str] = flag(["music", "pose"], "music and pose, in the order of their channels")
    guidance_input_channels: list[int] = flag(
        [35, 134], "number of music features, and of key points in OpenPose's order: 18, 24, 92 or 134"
    )
    music_groups: list[str] = flag(
        [],
        f"groups of the music features that are dropped apart, NAME=COLUMNS, for example {GROUPS_EXAMPLE}; "
        "columns in no group are not heard. None: those of the data's recipe, else one group, all",
    )
    beat_channel: int | None = flag(
        None, "column of the music features that is 1 on a beat; none: that of the data's recipe"
    )


@dataclass
class DanceDataSettings:
    """The data folders, and how windows are cut from them."""

    train_data_dir: str = flag(
        "./data", "folder with poses/ and music_features/; videos and reference images need not be there"
    )
    validation_data_dir: str | None = flag(
        None,
        "like --train_data_dir, for validation. Without it one sample in twenty (at most 8) is held out of "
        "the training data; with fewer than 10 samples validation uses training samples, and says so",
    )
    music_feature_fps: float | None = flag(
        None, "rate of the music feature rows; without it row k belongs to frame k"
    )
    time_stretch: float = flag(0.1, "a window is up to this share slower or faster, together with its music")
    random_flip: bool = flag(True, "mirror half of the windows, with left and right key points exchanged")
    skip_invalid: bool = flag(False, "leave faulty samples out (counted and listed) instead of stopping")
    check_data: bool = flag(False, "report on the data and stop: exit code 0 if clean, 2 if not")
    num_workers: int = flag(4, "data loader processes", aliases=["dataloader_num_workers"])


@dataclass
class DanceObjectiveSettings:
    """What is dropped in training, and how the loss weighs its terms beside that on positions."""

    guidance_dropout: float = flag(0.25, "share of windows trained without music (for guidance scale)")
    group_dropout: list[str] = flag(
        [], f"share of windows trained without a group of music features, for example {SHARES_EXAMPLE}"
    )
    velocity_weight: float = flag(3.0, "weight of the loss on velocities")
    acceleration_weight: float = flag(1.0, "weight of the loss on accelerations")
    bone_weight: float = flag(1.0, "weight of the loss on bones longer than any in the training data")
    foot_weight: float = flag(1.0, "weight of the loss on feet that slide where the true ones stand")


@dataclass
class MusicToPoseArguments(
    RunSettings, DanceObjectiveSettings, DanceDataSettings, MusicSettings, NetworkSettings
):
    """All settings of train_music_to_pose.py: the groups above, and those of every run but for some."""

    program = "train_music_to_pose.py"
    description = "Train a generator of pose tracks: music and a reference pose to a dance."
    not_offered = frozenset({
        "compile", "enable_xformers_memory_efficient_attention", "gradient_checkpointing",
        "pretrained_lr_scale", "validation_metrics",
    })  # fmt: skip

    # Other defaults or words than train_guidance.py's.
    output_dir: str = flag("./music_to_pose_output", "folder of checkpoints, samples and the final model")
    train_batch_size: int = flag(16, "windows per process and micro-batch")
    learning_rate: float = flag(2e-4, "learning rate")
    num_validation_clips: int = flag(8, "fixed windows that the validation measures")
    num_inference_steps: int = flag(25, "sampling steps of the dances of a validation")
    guidance_scale: float = flag(
        1.0, "classifier-free guidance scale of those dances; above 1 only where the music is used"
    )
    keep_best: str | None = flag(
        None,
        "val_loss: keep the checkpoint that is best by it as checkpoint-best, one more than "
        "--checkpoints_total_limit",
    )

    @property
    def num_features(self) -> int:
        return self.channels["music"]

    @property
    def num_key_points(self) -> int:
        return self.channels["pose"]

    @property
    def channels(self) -> dict[str, int]:
        return dict(zip(self.guidance_types, self.guidance_input_channels, strict=True))


def check_arguments(arguments: MusicToPoseArguments) -> None:
    """Raise ConfigError where settings contradict each other or are out of range."""
    check_values(arguments)
    if sorted(arguments.guidance_types) != ["music", "pose"]:
        types = " ".join(arguments.guidance_types)
        raise ConfigError(f"--guidance_types {types}: this trainer knows music and pose, and needs both")
    check_guidance(arguments, [arguments.guidance_dropout])
    if arguments.num_key_points not in OPENPOSE_COUNTS:
        known = ", ".join(map(str, OPENPOSE_COUNTS))
        raise ConfigError(
            f"--guidance_input_channels: pose has {arguments.num_key_points} key points; a dance needs those "
            f"of OpenPose's order, {known} of them"
        )
    if arguments.hidden_size % (2 * arguments.num_heads):
        raise ConfigError(
            f"--hidden_size {arguments.hidden_size}: must be a multiple of 2 x --num_heads, "
            f"{2 * arguments.num_heads}"
        )
    if arguments.sequence_length < 4:  # below, there is no change of an acceleration
        raise ConfigError(f"--sequence_length {arguments.sequence_length}: must be at least 4")
    if arguments.keep_best not in (None, "val_loss"):
        raise ConfigError(f"--keep_best {arguments.keep_best}: this trainer knows val_loss only")
    channel = arguments.beat_channel
    if channel is not None and channel >= arguments.num_features:
        raise ConfigError(f"--beat_channel {channel}: {_columns_there(arguments.num_features)}")
    read_groups(arguments.music_groups, arguments.num_features)
    read_shares(arguments.group_dropout)


def settings_without_effect(arguments: MusicToPoseArguments) -> list[str]:
    """Return a line for each changed setting that does nothing in this combination."""
    return dead_lines(arguments, dead_in_any_run(arguments))


def read_groups(words: Sequence[str], num_features: int) -> dict[str, list[int]]:
    """Return {group: its columns} of words NAME=0,33-34. Raises ConfigError."""
    groups = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            spans = [[int(end) for end in part.split("-")] for part in text.split(",")]
            columns = [column for span in spans for column in range(span[0], span[-1] + 1)]
        except ValueError:
            columns = []
        if not name or not columns or name in groups:
            raise ConfigError(f"--music_groups {word}: write NAME=COLUMNS, each name once: {GROUPS_EXAMPLE}")
        if max(columns) >= num_features:
            raise ConfigError(f"--music_groups {word}: {_columns_there(num_features)}")
        groups[name] = columns
    return groups


def _columns_there(num_features: int) -> str:
    return f"there are {num_features} music features, columns 0 to {num_features - 1}"


def read_shares(words: Sequence[str]) -> dict[str, float]:
    """Return {group: share} of words NAME=SHARE. Raises ConfigError."""
    shares = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if not name or not 0 <= share < 1 or name in shares:
            wanted = "write NAME=SHARE, each name once, at least 0 and below 1"
            raise ConfigError(f"--group_dropout {word}: {wanted}: {SHARES_EXAMPLE}")
        shares[name] = share
    return shares


def check_shares(shares: dict[str, float], groups: dict[str, list[int]]) -> None:
    """Raise ConfigError for a share of a group that the music features do not have."""
    for name in shares:
        if name not in groups:
            groups_there = f"the music's groups are {', '.join(groups)}"
            raise ConfigError(f"--group_dropout {name}: {groups_there}; others are told by {GROUPS_EXAMPLE}")


def memory_advice(arguments: MusicToPoseArguments, *, has_gpu: bool) -> str:
    """Return which settings still save memory, the most harmless first."""
    windows = arguments.train_batch_size * arguments.gradient_accumulation_steps
    helps = {
        "--mixed_precision bf16": has_gpu and arguments.mixed_precision == "no",
        f"--train_batch_size 1 --gradient_accumulation_steps {windows} (the same step)": (
            arguments.train_batch_size > 1
        ),
        f"a smaller --sequence_length than {arguments.sequence_length}": True,
        f"a smaller --hidden_size than {arguments.hidden_size}": True,
    }
    return f"What still helps: {'; '.join(flag for flag, does in helps.items() if does)}"
