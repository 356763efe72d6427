"""The validation loss, and whether each guidance is used: by the loss with that guidance of another clip.

The guidance gap of a type is (loss with that type taken from another clip - loss) / loss: near zero means
that the model does not listen to it. Where one type already says everything, the others add nothing: hence
also `guidance_gap_alone`, with all other types left out, which is what sampling from one type alone sees.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caching.batch_encoding import encode_batch, move_batch
from datasets.body.regions import region_mask, type_of_person

from .confidence import bootstrap_interval
from .validation_metrics import ValidationRun, register_validation_metric

TIMESTEPS = (125, 375, 625, 875)  # the middles of four equal bins
VALIDATION_SEED = 20240321
ELSEWHERE = "elsewhere"  # outside all regions whose loss is told

ClipLosses = dict[str, list[float]]
WHOLE = MappingProxyType({"val_loss": None})  # {name of a loss: the weights of its errors}, see sample_losses


class Objective(Protocol):
    """What is asked of a training objective: the same noise, target and score."""

    def draw(self, latents: Tensor, seeds: Sequence[Sequence[int]]): ...
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def sample_losses(
        self, model_pred: Tensor, target: Tensor, timesteps: Tensor, error_weights: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class GapProtocol:
    """How losses are measured; all losses of a clip share noise and timesteps.

    `batch_size` timesteps go through the model at once; `gap_stride` 2 measures the gaps at every other
    timestep, against the loss there: half the time. `regions` have losses of their own, beside that of all
    which is in none of them.
    """

    timesteps: Sequence[int] = TIMESTEPS
    seed: int = VALIDATION_SEED
    batch_size: int = 4
    gap_stride: int = 1
    regions: Sequence[str] = ()


@dataclass
class EncodedClip:
    """A clip as the model takes it, B = 1."""

    sample_id: str
    latents: Tensor  # [1, F, 4, h, w]
    reference_latents: Tensor  # [1, 4, h, w]
    image_tokens: Tensor  # [1, L, D]
    guidance: dict[str, Tensor]  # {type: [1, F, ...]}


def encode_clip(frozen, batch: dict, device: torch.device) -> EncodedClip:
    """Return a batch dict of one clip as the model takes it."""
    latents, conditions = encode_batch(frozen, move_batch(batch, device), [VALIDATION_SEED])
    return EncodedClip(batch["sample_id"][0], latents, **conditions)


def evaluate_guidance_gaps(
    model,
    frozen,
    objective: Objective,
    clips: Sequence[dict],
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = VALIDATION_SEED,
    batch_size: int = 4,
) -> dict[str, float]:
    """Return val_loss, val_loss/BIN, guidance_gap/TYPE, guidance_gap/reference, guidance_gap_alone/TYPE.

    `clips` are batch dicts of one clip each, as the dataset's collate makes them; `objective` only scores,
    its dropouts are not applied. All losses of a clip share noise and timesteps; `batch_size` timesteps go
    through the model at once.
    """
    device = next(model.parameters()).device
    encoded = [encode_clip(frozen, batch, device) for batch in clips]
    return measure(model, objective, encoded, GapProtocol(timesteps, seed, batch_size))


@register_validation_metric("guidance_gaps", higher_is_better={"val_loss": False})
def measure_in_validation(run: ValidationRun) -> dict[str, float]:
    protocol = GapProtocol(batch_size=run.batch_size, gap_stride=2, regions=run.regions)
    return measure(run.model, run.objective, run.clips, protocol)


@register_validation_metric("training_clips")
def measure_training_clips(run: ValidationRun) -> dict[str, float]:
    """Return the validation loss of training clips: what falls there alone is learned by heart."""
    protocol = GapProtocol(batch_size=run.batch_size)
    # One by one: a clip without others has no gaps, which would cost several times as much.
    rows = [clip_losses(run.model, run.objective, [clip], protocol)[0] for clip in run.training_clips]
    return {"val_loss_training_clips": as_scalars(rows)["val_loss"]} if rows else {}


def measure(
    model, objective: Objective, clips: Sequence[EncodedClip], protocol: GapProtocol
) -> dict[str, float]:
    """Return what `evaluate_guidance_gaps` does, for clips that are encoded already."""
    return as_scalars(clip_losses(model, objective, clips, protocol))


def interval_of(rows: Sequence[ClipLosses], name: str) -> tuple[float, float]:
    """Return (low, high) of guidance_gap/TYPE or guidance_gap_alone/TYPE over clips, from their losses.

    A gap is a ratio of two means; near its value it is the mean of one number per clip, and has its interval.
    """
    kind, _, what = name.partition("/")
    base, swapped = ("true", "swapped") if kind == "guidance_gap" else (f"alone/{what}", "alone_swapped")
    pairs = [(row[base], row[f"{swapped}/{what}"]) for row in rows if f"{swapped}/{what}" in row]
    true, other = np.array([[np.mean(values) for values in pair] for pair in pairs]).T
    ratio = other.mean() / true.mean()
    return bootstrap_interval(ratio - 1 + (other - ratio * true) / true.mean())


@torch.no_grad()
def clip_losses(
    model, objective: Objective, clips: Sequence[EncodedClip], protocol: GapProtocol,
    on_clip: Callable[[], object] = lambda: None,
) -> list[ClipLosses]:  # fmt: skip
    """Return {variant, val_loss..., guidance_norm/TYPE: its values over the timesteps} of each clip.

    on_clip is called after each of them.
    """
    timesteps, gap_stride = protocol.timesteps, protocol.gap_stride
    score = _Score(model, objective, protocol.batch_size)
    at_gaps, rows = slice(gap_stride - 1, None, gap_stride), []
    for place, clip in enumerate(clips):
        losses = defaultdict(list)
        seeds = [(protocol.seed, place, timestep) for timestep in timesteps]
        noise = objective.draw(_repeat(clip.latents, len(timesteps)), seeds).noise
        at = torch.tensor(list(timesteps), device=noise.device)
        variants, feature_norms = _variants(model, clip, _partner(clips, place))
        parts = WHOLE | region_weights(clip, protocol.regions)
        losses |= score(clip.latents, variants.pop("true"), noise, at, parts)
        for timestep, loss in zip(timesteps, losses["val_loss"], strict=True):
            losses[_bin_name(timestep, len(timesteps))].append(loss)
        losses["true"] += losses["val_loss"][at_gaps]
        for name, variant in variants.items():
            losses[name] += score(clip.latents, variant, noise[at_gaps], at[at_gaps])["val_loss"]
        for name, norm in feature_norms.items():
            losses[name].append(norm)
        rows.append(losses)
        on_clip()
    return rows


class _Score:
    """The losses of a clip under one variant of its conditions."""

    def __init__(self, model, objective: Objective, batch_size: int):
        self.model, self.objective, self.batch_size = model, objective, batch_size

    def __call__(
        self, latents: Tensor, variant: tuple, noise: Tensor, at: Tensor,
        parts: Mapping[str, Tensor | None] = WHOLE,
    ) -> ClipLosses:  # fmt: skip
        """Return the losses at each timestep of `at` [T], noise [T, F, 4, h, w], of latents [1, F, 4, h, w].

        parts: {name of a loss: weights of the errors [1, F, 1, h, w]; None: all 1}.
        """
        objective, found = self.objective, defaultdict(list)
        splits = zip(noise.split(self.batch_size), at.split(self.batch_size), strict=True)
        for some_noise, timesteps in splits:
            bank, tokens, features = _repeat(variant, len(timesteps))
            clean = _repeat(latents, len(timesteps))
            noisy = objective.add_noise(clean, some_noise, timesteps)
            model_pred = self.model.denoise(noisy, timesteps, tokens, bank, features)
            target = objective.target(clean, some_noise, timesteps)
            for name, error_weights in parts.items():
                losses = objective.sample_losses(model_pred, target, timesteps, error_weights)
                found[name] += losses.tolist()
        return found


def region_weights(clip: EncodedClip, regions: Sequence[str]) -> dict[str, Tensor]:
    """Return {val_loss_region/REGION or ELSEWHERE: weights [1, F, 1, h, w]} that leave the mean error there.

    A region that the clip does not show is left out.
    """
    if not regions:
        return {}
    points = clip.guidance[type_of_person({name: one.shape[2:] for name, one in clip.guidance.items()})]
    masks = {name: region_mask(points, name, clip.latents.shape[-2:])[:, :, None] for name in regions}
    masks[ELSEWHERE] = ~torch.stack([*masks.values()]).any(0)
    return {
        f"val_loss_region/{name}": mask / mask.float().mean() for name, mask in masks.items() if mask.any()
    }


def _repeat(value, count: int):
    """Return tensors [1, ...] as [count, ...], also those inside dicts and tuples; None stays."""
    if isinstance(value, Tensor):
        return value.expand(count, *value.shape[1:])
    if isinstance(value, dict):
        return {name: _repeat(item, count) for name, item in value.items()}
    if isinstance(value, tuple):
        items = [_repeat(item, count) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _partner(clips: Sequence[EncodedClip], place: int) -> EncodedClip | None:
    """Return the next clip of another video, else the next one of the same video, else None."""
    others = [clips[(place + offset) % len(clips)] for offset in range(1, len(clips))]
    of_other_videos = [clip for clip in others if clip.sample_id != clips[place].sample_id]
    return next(iter(of_other_videos or others), None)


def _variants(model, clip: EncodedClip, partner: EncodedClip | None) -> tuple[dict, dict[str, float]]:
    """Return {variant: (bank, image tokens, features)} and {guidance_norm/type: root mean square}."""
    size = clip.latents.shape[-2:]
    bank = model.encode_reference(clip.reference_latents, clip.image_tokens)
    variants = {"true": (bank, clip.image_tokens, model.encode_guidance(clip.guidance, size))}
    norms = {}
    for name, condition in clip.guidance.items():
        alone = model.encode_guidance({name: condition}, size)
        feature = alone.vector if alone.spatial is None else alone.spatial
        norms[f"guidance_norm/{name}"] = feature.float().square().mean().sqrt().item()
        if partner is None:
            continue
        other = _fitted(partner.guidance[name], condition)
        swapped = {**clip.guidance, name: other}
        variants[f"swapped/{name}"] = (bank, clip.image_tokens, model.encode_guidance(swapped, size))
        if len(clip.guidance) > 1:
            alone_swapped = model.encode_guidance({name: other}, size)
            variants[f"alone/{name}"] = (bank, clip.image_tokens, alone)
            variants[f"alone_swapped/{name}"] = (bank, clip.image_tokens, alone_swapped)
    if partner is not None and partner.sample_id != clip.sample_id:
        other_bank = model.encode_reference(partner.reference_latents, partner.image_tokens)
        variants["swapped/reference"] = (other_bank, partner.image_tokens, variants["true"][2])
    return variants, norms


def _fitted(other: Tensor, own: Tensor) -> Tensor:
    """Return another clip's condition; its maps [1, F, C, H, W], of another size, as large as own."""
    if other.shape == own.shape:
        return other
    maps = F.interpolate(other.flatten(0, 1), own.shape[-2:], mode="bilinear", antialias=True)
    return maps.unflatten(0, other.shape[:2])


def _bin_name(timestep: int, num_bins: int) -> str:
    width = 1000 // num_bins
    first = timestep // width * width
    return f"val_loss/t{first:03d}-{first + width - 1:03d}"


def as_scalars(rows: Sequence[ClipLosses]) -> dict[str, float]:
    """Return TensorBoard's names: losses and norms as they are, gaps relative to the true loss."""
    pooled = defaultdict(list)
    for row in rows:
        for name, values in row.items():
            pooled[name] += values
    means = {name: sum(values) / len(values) for name, values in pooled.items()}
    scalars = {}
    for name, mean in means.items():
        kind, _, what = name.partition("/")
        if kind == "swapped":
            scalars[f"guidance_gap/{what}"] = (mean - means["true"]) / means["true"]
        elif kind == "alone_swapped":
            scalars[f"guidance_gap_alone/{what}"] = (mean - means[f"alone/{what}"]) / means[f"alone/{what}"]
        elif kind in ("val_loss", "val_loss_region", "guidance_norm"):
            scalars[name] = mean
    return scalars
