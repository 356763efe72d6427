"""Long clips as overlapping windows: the motion modules know a limited number of frames (CHAMP: 32)."""

from typing import NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from models.frozen import Generators


class WindowGrid(NamedTuple):
    """Windows that cover a clip, and the number of frames over which one fades into the next."""

    windows: list[slice]
    fade: int


def context_windows(num_frames: int, context_frames: int, context_overlap: int) -> list[slice]:
    """Return windows of context_frames over num_frames; neighbours share at least context_overlap frames.

    A clip no longer than one window is one window of its own length.
    """
    if num_frames <= context_frames:
        return [slice(0, num_frames)]
    last_start = num_frames - context_frames
    starts = [*range(0, last_start, context_frames - context_overlap), last_start]
    return [slice(start, start + context_frames) for start in starts]


def make_grids(
    num_frames: int, context_frames: int, context_overlap: int, num_grids: int = 1
) -> list[WindowGrid]:
    """Return the grids of windows that the sampling steps take in turn.

    The first is that of `context_windows`. The second lies half a stride further, so that what is a window's
    edge in one is the middle of a window in the other: with one grid every step would see the same edges at
    the same frames. Where the clip begins and ends both have a window; those of the second share all but half
    a stride with their neighbours, and fade over all of it.
    """
    first = WindowGrid(context_windows(num_frames, context_frames, context_overlap), context_overlap)
    stride = context_frames - context_overlap
    last_start, shift = num_frames - context_frames, stride // 2
    if num_grids == 1 or last_start <= 0 or shift == 0:
        return [first] * num_grids
    last_inner = last_start - shift
    inner = [*range(shift, last_inner, stride), last_inner] if last_inner > shift else [last_start // 2]
    starts = sorted({0, *inner, last_start})
    second = WindowGrid([slice(start, start + context_frames) for start in starts], context_frames)
    return [first, second]


def frame_weights(num_frames: int, context_overlap: int) -> Tensor:
    """Return how much each frame of a window counts where windows overlap, float32 [num_frames].

    Weights rise over the overlap, so that one window fades into the next; with equal weights every window's
    edge would be a jump, at the same frame in every sampling step.
    """
    rise = torch.arange(1, num_frames + 1, dtype=torch.float32)
    return torch.minimum(rise, rise.flip(0)).clamp(max=context_overlap + 1)


def draw_shared_noise(
    shape: tuple[int, ...], grid: WindowGrid, generator: Generators, device: torch.device
) -> Tensor:
    """Return noise [B, F, ...] that is drawn for the first window, and shuffled along the clip.

    FreeNoise (arXiv:2310.15169): every later stretch of one stride takes the noise of the frames
    one window before it in another order. Distant windows then start from the same noise, and look alike.
    """
    context_frames = grid.windows[0].stop
    noise = torch.empty(shape, device=device)
    noise[:, :context_frames] = randn_tensor((shape[0], context_frames, *shape[2:]), generator, device)
    stride = grid.windows[1].start if len(grid.windows) > 1 else context_frames
    generators = generator if isinstance(generator, list) else [generator]
    for start in range(context_frames, shape[1], stride):
        stretch = noise[:, start : start + stride]
        for index, one in enumerate(generators):
            clips = slice(index, index + 1) if isinstance(generator, list) else slice(None)
            order = torch.randperm(stride, generator=one, device=None if one is None else one.device)
            order = order[: stretch.shape[1]].to(device)
            earlier = noise[clips, start - context_frames : start - context_frames + stride]
            stretch[clips] = earlier[:, order]
    return noise
