"""Long clips as overlapping windows: the motion modules know a limited number of frames (CHAMP: 32)."""

import torch
from torch import Tensor


def context_windows(num_frames: int, context_frames: int, context_overlap: int) -> list[slice]:
    """Return windows of context_frames over num_frames; neighbours share at least context_overlap frames.

    A clip no longer than one window is one window of its own length.
    """
    if num_frames <= context_frames:
        return [slice(0, num_frames)]
    last_start = num_frames - context_frames
    starts = [*range(0, last_start, context_frames - context_overlap), last_start]
    return [slice(start, start + context_frames) for start in starts]


def frame_weights(num_frames: int, context_overlap: int) -> Tensor:
    """Return how much each frame of a window counts where windows overlap, float32 [num_frames].

    Weights rise over the overlap, so that one window fades into the next; with equal weights every window's
    edge would be a jump, at the same frame in every sampling step.
    """
    rise = torch.arange(1, num_frames + 1, dtype=torch.float32)
    return torch.minimum(rise, rise.flip(0)).clamp(max=context_overlap + 1)
