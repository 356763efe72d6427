"""The metrics that a run asks for by name: refused at its start where it cannot give them."""

import math
from collections.abc import Sequence

from datasets import GuidanceDataset
from evaluation.validation_metrics import CLIP_METRICS, directions, measure_clip
from system.command_line import nearest
from system.errors import ConfigError
from training.settings.fields import OutputSettings


def clip_metrics(settings: OutputSettings) -> list[str]:
    """Return the metrics of sampled clips to measure: --validation_metrics, and that of --keep_best."""
    asked_for = dict.fromkeys([*settings.validation_metrics, settings.keep_best])
    return [name for name in asked_for if name in CLIP_METRICS]


def check_names(settings: OutputSettings) -> None:
    """Raise ConfigError for a metric that no validation has. The user's modules must be read before."""
    choices = {
        "validation_metrics": (settings.validation_metrics, [*CLIP_METRICS]),
        "keep_best": ([settings.keep_best] if settings.keep_best else [], [*directions()]),
    }
    for flag, (names, known) in choices.items():
        for name in names:
            if name not in known:
                raise ConfigError(f"--{flag} {name}: choose from {', '.join(known)}{nearest(name, known)}")


def check_on_clips(
    dataset: GuidanceDataset, clips: Sequence[tuple[int, int]], settings: OutputSettings
) -> None:
    """Raise ConfigError for a metric that the fixed clips cannot give: each is tried, truth against itself.

    `clips` are (index, start frame), as `choose_clips` has them.
    """
    missing = clip_metrics(settings)
    for index, start in clips if missing else ():
        clip = dataset.read_clip(index, start)
        values = {name: _of_truth(name, clip, settings) for name in missing}
        missing = [name for name, value in values.items() if math.isnan(value)]
    for name in missing:
        needs = CLIP_METRICS[name].needs
        raise ConfigError(f"{_flag(name, settings)}: needs {needs}; no validation clip has it: leave it out")


def _of_truth(name: str, clip: dict, settings: OutputSettings) -> float:
    try:
        return measure_clip([name], clip, clip["frames"])[name]
    except ValueError as error:
        raise ConfigError(f"{_flag(name, settings)}: clip {clip['sample_id']}: {error}") from error


def _flag(name: str, settings: OutputSettings) -> str:
    return f"--{'validation_metrics' if name in settings.validation_metrics else 'keep_best'} {name}"
