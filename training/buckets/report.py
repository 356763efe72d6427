"""What a user is told of the buckets: how many videos each has, what is cropped away, what is rare."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

from datasets.transforms import Size, make_transform
from training.data import TrainingData
from training.settings.fields import RunSettings
from training.setup import clips_per_step, count_steps

from .sizes import shown_size


def bucket_lines(settings: RunSettings, data: TrainingData, num_processes: int) -> list[str]:
    """Return lines on the videos in each bucket, and on buckets that make few steps; [] without buckets."""
    train_set, sizes, losses = data.train_set, data.clip_sizes, defaultdict(list)
    if not sizes:
        return []
    for index, size in sizes.items():
        losses[size].append(crop_and_bars(train_set.frame_size(index), size, train_set.fit))
    lines = ["aspect buckets (height x width); all clips of a step are of one of them:"]
    for size in train_set.buckets:
        if size in losses:
            cropped, bars = np.mean(losses[size], axis=0)
            added = f", {bars:.1%} of the clips are black bars" if bars else ""
            count = counted(len(losses[size]), "video")
            lines.append(f"  {shown_size(size)}: {count}, {cropped:.1%} of the frames is cropped away{added}")
    num_steps = count_steps(settings, len(sizes), num_processes)
    return lines + rare_lines(Counter(sizes.values()), clips_per_step(settings, num_processes), num_steps)


def crop_and_bars(frame_size: Size, size: Size, fit: str) -> tuple[float, float]:
    """Return the share of a frame that is cut off, and the share of a clip that is bars."""
    inner = make_transform(frame_size, size, fit=fit).inner_size
    shown = math.prod(min(pair) for pair in zip(inner, size, strict=True))
    return 1 - shown / math.prod(inner), 1 - shown / math.prod(size)


def rare_lines(counts: Mapping[Size, int], per_step: int, num_steps: int) -> list[str]:
    """Return a line for each bucket {size: number of videos} whose videos do not fill a step."""
    lines, num_epochs = [], num_steps * per_step / sum(counts.values())
    for size, count in counts.items():
        if count >= per_step:
            continue
        has = f"aspect bucket {shown_size(size)} has {counted(count, 'video')}, a step takes {per_step} clips"
        epochs = per_step / count
        if num_epochs < math.ceil(epochs):
            lines.append(f"warning: {has}: this run may end before they fill one, and not train on them")
        else:
            lines.append(f"note: {has}: they make one every {epochs:.3g} epochs, of several clips per video")
    return lines


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
