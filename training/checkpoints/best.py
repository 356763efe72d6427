"""checkpoint-best: the checkpoint that is best by a metric of the validation, kept beside the others.

What it is the best by, and with which value, stands in its own STATE_FILE and nowhere else: a run that is
resumed goes by the folder that it finds, also where that is further on than the checkpoint it starts from.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluation.validation_metrics import directions
from system.errors import ConfigError
from training.settings.fields import RunSettings

from .folders import BEST_NAME, fault_of, set_aside
from .resuming import changed_parts
from .saving import TrainerState, read_state

# With others of these, a validation has other clips or measures them in another way: values do not compare.
MEASURE_SETTINGS = (
    "train_data_dir", "validation_data_dir", "train_data_format", "num_validation_clips", "resolution",
    "aspect_buckets", "fit", "center_crop", "cache_latents",  # the last crops so too
    "sequence_length", "frame_stride", "music_feature_fps", "snr_gamma",
)  # fmt: skip
SAMPLING_SETTINGS = ("num_inference_steps", "guidance_scale")  # of metrics of sampled clips


@dataclass
class BestCheckpoint:
    """The metric that checkpoint-best goes by, and its value there; None: there is none yet.

    The main process alone knows the value.
    """

    metric: str
    higher_is_better: bool
    value: float | None = None

    def is_better(self, value: float) -> bool:
        """Return whether a validation's value is the best so far: finite, and not merely equal."""
        if not math.isfinite(value):
            return False
        if self.value is None:
            return True
        return value > self.value if self.higher_is_better else value < self.value


def make_best(settings: RunSettings) -> BestCheckpoint | None:
    """Return what --keep_best goes by, without a value yet, or None where it is off."""
    metric = settings.keep_best
    return None if metric is None else BestCheckpoint(metric, directions()[metric])


def take_up(
    best: BestCheckpoint | None, settings: RunSettings, start: Path | None, start_state: TrainerState
) -> list[str]:
    """Give `best` the value of the checkpoint-best that the run has; return lines for the user.

    One of another run (`start`, the checkpoint that is resumed from, is not beside it), a broken one, and one
    whose value does not compare are set aside instead. Only the main process calls it.
    """
    output_dir = Path(settings.output_dir)
    folder = output_dir / BEST_NAME
    if not folder.is_dir():
        return []
    if start is None or start.resolve().parent != output_dir.resolve():
        return [set_aside(folder, "of an earlier run")]
    if best is None:
        return []
    try:
        state = read_state(folder)
    except ConfigError:
        return [set_aside(folder, f"(broken: {fault_of(folder) or 'of another version of this trainer'})")]
    reason = incomparable(state, settings, start_state.frozen_digests)
    if reason is not None:
        return [set_aside(folder, f"({reason})")]
    best.value = state.best[best.metric]
    start_step = start_state.step
    beyond = f", further on than this start at step {start_step}" if state.step > start_step else ""
    return [f"{BEST_NAME} is of step {state.step}{beyond}: {best.metric} {best.value:.6g}"]


def incomparable(state: TrainerState, settings: RunSettings, frozen_digests: Mapping[str, str]) -> str | None:
    """Return why the value of a checkpoint-best does not compare with today's, or None where it does."""
    metric, today, before = settings.keep_best, asdict(settings), state.settings
    if metric not in state.best:
        return f"the best by {', '.join(state.best)}, not by {metric}"
    names = MEASURE_SETTINGS + (SAMPLING_SETTINGS if metric != "val_loss" else ())
    changed = [name for name in names if name in today and before.get(name, today[name]) != today[name]]
    changed += changed_parts(state, frozen_digests)  # other latents, another loss
    return f"measured with another {', '.join(changed)}" if changed else None
