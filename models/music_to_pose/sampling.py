"""A track of any length from a song: windows that share one noisy state, so that no seam can show.

At each step of DDIM every window predicts its clean dance, the predictions are cross-faded over the overlap,
and the one noisy track takes the step. EDGE (arXiv:2211.10658) copies halves of windows instead, which on
real dance left several times the speed at the seams.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

from .model import MusicToPoseModel
from .objective import make_noise_scheduler
from .representation import NUM_ROOT_COLUMNS, fill_gaps

WINDOWS_AT_ONCE = 16  # bounds memory, whatever the song's length
FADE_SECONDS = 0.25  # before and after what is kept

Known = tuple[Tensor, Tensor]  # values [N, P] and bool [N, P]: where they are to be kept


def make_sampler() -> DDIMScheduler:
    """Return the sampler of the training schedule; "trailing" begins at pure noise."""
    return DDIMScheduler.from_config(make_noise_scheduler().config, timestep_spacing="trailing")


@torch.no_grad()
def sample_track(
    model: MusicToPoseModel,
    scheduler: DDIMScheduler,
    music: Tensor,
    reference: Tensor,
    *,
    num_inference_steps: int = 25,
    guidance_scale: float = 1.0,
    generator: torch.Generator | None = None,
    num_tracks: int = 1,
    known: Known | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return values [T, N, P], as PoseRepresentation decodes them, for a song.

    music [N, D'] as MusicFeatures returns it, at the model's frame rate; reference [K, 3] key points in
    heights of the frame. The first track is the same whatever num_tracks. known: values to keep, which the
    rest is made to fit. callback(steps done, steps).
    """
    device, num_values = music.device, model.representation.num_values
    shape = (len(music), num_values)
    noise = [torch.randn(shape, generator=generator, device=_device_of(generator)) for _ in range(num_tracks)]
    state = torch.stack(noise).to(device)  # [T, N, P]
    reference = model.representation.encode_reference(reference[None])  # [1, R]
    scheduler.set_timesteps(num_inference_steps, device=device)
    shares = None if known is None else fade_shares(known[1], model.config.frame_rate)  # [N, P]
    for step, timestep in enumerate(scheduler.timesteps):
        clean = predict_clean(model, state, timestep, music, reference, guidance_scale)  # [T, N, P]
        if known is not None:
            clean = model.normalize(fit_to(model.denormalize(clean), *known, shares))  # [T, N, P]
        state = scheduler.step(clean, timestep, state).prev_sample  # [T, N, P]
        if callback is not None:
            callback(step + 1, num_inference_steps)
    return model.denormalize(state)


def predict_clean(
    model: MusicToPoseModel,
    state: Tensor,
    timestep: Tensor,
    music: Tensor,
    reference: Tensor,
    guidance_scale: float,
) -> Tensor:
    """Return the clean track [T, N, P] that the windows over state [T, N, P] predict, cross-faded."""
    num_frames = state.shape[1]
    length = min(model.config.sequence_length, num_frames)
    fade = torch.arange(1, length + 1, device=state.device, dtype=state.dtype)
    fade = torch.minimum(fade, fade.flip(0))[:, None]  # [F, 1]; over half an overlap a linear cross-fade
    total, weight = torch.zeros_like(state), torch.zeros_like(state[0, :, :1])  # [T, N, P], [N, 1]
    jobs = [(track, start) for start in window_starts(num_frames, length) for track in range(len(state))]
    for first in range(0, len(jobs), WINDOWS_AT_ONCE):
        some = jobs[first : first + WINDOWS_AT_ONCE]
        noisy = torch.stack([state[track, start : start + length] for track, start in some])  # [W, F, P]
        heard = torch.stack([music[start : start + length] for _, start in some])  # [W, F, D']
        clean = _guided(model, noisy, timestep, heard, reference, guidance_scale)  # [W, F, P]
        for (track, start), window in zip(some, clean, strict=True):
            total[track, start : start + length] += fade * window
            if track == 0:
                weight[start : start + length] += fade
    return total / weight


def fit_to(clean: Tensor, known: Tensor, mask: Tensor, shares: Tensor) -> Tensor:
    """Return clean [T, N, P] with the known values [N, P] where mask [N, P]; beside them it leans to them.

    By as much as it missed the nearest of them, times shares [N, P]: it goes on moving as it would. A bone
    turns so, and its length is faded by itself: half-way between up and down an arm would be short.
    """
    missed = fill_gaps(known - clean, mask.expand_as(clean))  # [T, N, P]
    leaning = clean + shares * missed  # [T, N, P]
    own, kept, turned = (_bones(values) for values in (clean, known, leaning))  # [..., N, n, 2]
    mask_of_bones, shares = mask[:, NUM_ROOT_COLUMNS::2], shares[:, NUM_ROOT_COLUMNS::2]  # [N, n]
    lengths = own.norm(dim=-1)  # [T, N, n]
    missed = fill_gaps(kept.norm(dim=-1) - lengths, mask_of_bones.expand_as(lengths))  # [T, N, n]
    lengths = (lengths + shares * missed).clamp(min=0)  # [T, N, n]
    turned = turned * (lengths / turned.norm(dim=-1).clamp(min=1e-6))[..., None]  # [T, N, n, 2]
    fitted = torch.cat([leaning[..., :NUM_ROOT_COLUMNS], turned.flatten(-2)], dim=-1)  # [T, N, P]
    return torch.where(mask, known, fitted)


def _bones(values: Tensor) -> Tensor:
    return values[..., NUM_ROOT_COLUMNS:].unflatten(-1, (-1, 2))


def fade_shares(mask: Tensor, frame_rate: float) -> Tensor:
    """Return [N, P]: 1 where bool [N, P] is true, falling to 0 within FADE_SECONDS on either side."""
    reach = max(1, round(FADE_SECONDS * frame_rate / 2))  # frames of each of two windows
    shares = mask.float().T[None]  # [1, P, N]
    shares = F.max_pool1d(shares, 2 * reach + 1, 1, reach)
    shares = F.avg_pool1d(shares, 2 * reach + 1, 1, reach, count_include_pad=False)
    return shares[0].T


def window_starts(num_frames: int, length: int) -> list[int]:
    """Return where windows start: each half a window after the one before, the last at the end."""
    hop = max(length // 2, 1)
    return [*range(0, num_frames - length, hop), num_frames - length]


def _guided(model, noisy: Tensor, timestep: Tensor, music: Tensor, reference: Tensor, scale: float) -> Tensor:
    """Return the prediction [W, F, P], driven away from that without music where scale is above 1."""
    timesteps = timestep.expand(len(noisy))  # [W]
    reference = reference.expand(len(noisy), -1)  # [W, R]
    clean = model(noisy, timesteps, music, reference)
    if scale == 1:
        return clean
    unheard = torch.zeros(len(noisy), dtype=torch.bool, device=noisy.device)
    silent = dict.fromkeys(model.music_features.groups, unheard)
    without = model(noisy, timesteps, music, reference, music_mask=silent)
    return without + scale * (clean - without)


def _device_of(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
