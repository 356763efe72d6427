"""The training objective: noise schedule, draws of a batch, and a loss on places, motion, bones and feet.

Every draw comes from a generator of one number per sample, so that a run which is resumed or spread over
processes draws the same. Losses are means per sample, then over samples, for the same reason.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from .model import MusicToPoseModel
from .representation import NUM_ROOT_COLUMNS

STILL_SPEED = 0.3  # torso lengths per second: a foot that is slower stands


@dataclass
class Draw:
    """The random numbers of one batch of B windows."""

    noise: Tensor  # [B, F, P]
    timesteps: Tensor  # int64 [B]
    music_mask: dict[str, Tensor]  # {group: bool [B]}, False: trained without this group


def make_noise_scheduler() -> DDPMScheduler:
    """Return the schedule of training; `sampling.make_sampler` has the sampler of the same schedule."""
    return DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)


@dataclass
class MusicToPoseObjective:
    """Draws, noises and scores a batch. `group_dropout`: one probability per group of music features.

    Sources: EDGE (arXiv:2211.10658) for velocity and feet; in 2D a bone may shorten, so only what is longer
    than in the training data costs.
    """

    scheduler: DDPMScheduler
    _: KW_ONLY
    music_dropout: float = 0.25  # of all groups at once: what guidance needs
    group_dropout: dict[str, float] = field(default_factory=dict)
    velocity_weight: float = 3.0
    acceleration_weight: float = 1.0
    bone_weight: float = 1.0
    foot_weight: float = 1.0

    def draw(self, shape: Sequence[int], seeds: Sequence[int], groups: Sequence[str]) -> Draw:
        """Return the random numbers for values [B, F, P], sample b from seeds[b], and the groups of music."""
        draws = [self._draw_sample(shape[1:], seed, groups) for seed in seeds]
        noise, timesteps, kept = (torch.stack(part) for part in zip(*draws, strict=True))
        return Draw(noise, timesteps, {name: kept[:, place] for place, name in enumerate(groups)})

    def _draw_sample(self, shape: Sequence[int], seed: int, groups: Sequence[str]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
        noise = torch.randn(tuple(shape), generator=generator)  # [F, P]
        timestep = torch.randint(self.scheduler.config.num_train_timesteps, (), generator=generator)
        chances = torch.rand(1 + len(groups), generator=generator)
        shares = torch.tensor([self.group_dropout.get(name, 0.0) for name in groups])
        return noise, timestep, (chances[0] >= self.music_dropout) & (chances[1:] >= shares)

    def __call__(self, model: MusicToPoseModel, batch: dict, draw: Draw) -> Tensor:
        """Return the loss, a scalar; batch: as of `losses`."""
        weights = {
            "position": 1.0, "velocity": self.velocity_weight, "acceleration": self.acceleration_weight,
            "bone": self.bone_weight, "foot": self.foot_weight,
        }  # fmt: skip
        losses = self.losses(model, batch, draw)
        return sum(weight * losses[name] for name, weight in weights.items()).mean()

    def losses(self, model: MusicToPoseModel, batch: dict, draw: Draw) -> dict[str, Tensor]:
        """Return {name: float32 [B]}, unweighted: position, velocity, acceleration, bone and foot.

        batch: key_points [B, F, K, 3] and reference_pose [B, K, 3] in heights of the frame, music [B, F, D'].
        """
        parts = getattr(model, "module", model)  # wrapped for several processes
        representation = parts.representation
        values, weights = representation.encode(batch["key_points"], batch["reference_pose"])  # [B, F, P]
        clean = parts.normalize(values)
        clean = torch.where(weights.amax(1, keepdim=True) > 0, clean, 0)  # never seen: the mean, not a place
        device = clean.device
        timesteps = draw.timesteps.to(device)
        noisy = self.scheduler.add_noise(clean, draw.noise.to(device), timesteps)
        predicted = model(
            noisy, timesteps, batch["music"], representation.encode_reference(batch["reference_pose"]),
            music_mask={name: mask.to(device) for name, mask in draw.music_mask.items()},
        ).float()  # fmt: skip
        weights = weights * representation.importance
        moments = zip(
            ("position", "velocity", "acceleration"),
            _differences(predicted - clean), _differences(weights, torch.minimum), strict=True,
        )  # fmt: skip
        found = {name: weighted_mean(error.square(), weight) for name, error, weight in moments}
        predicted = parts.denormalize(predicted)
        return found | {
            "bone": _bone_loss(parts, predicted, weights),
            "foot": _foot_loss(parts, predicted, values, weights),
        }


def weighted_mean(errors: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of errors [B, ...] by weights of the same shape, [B]; 0 where all weights are 0."""
    return (errors * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)


def _differences(values: Tensor, combine=lambda after, before: after - before) -> tuple[Tensor, ...]:
    """Return values [B, F, P], their first and their second differences in time."""
    first = combine(values[:, 1:], values[:, :-1])
    return values, first, combine(first[:, 1:], first[:, :-1])


def _bone_loss(model: MusicToPoseModel, predicted: Tensor, weights: Tensor) -> Tensor:
    """Return [B]: by how much bones are longer than the limits, squared torso lengths."""
    offsets = predicted[..., NUM_ROOT_COLUMNS:].unflatten(-1, (-1, 2))  # [B, F, n, 2]
    excess = (offsets.square().sum(-1).clamp(min=1e-8).sqrt() - model.bone_limits).clamp(min=0)  # [B, F, n]
    return weighted_mean(excess.square(), weights[..., NUM_ROOT_COLUMNS::2])


def _foot_loss(model: MusicToPoseModel, predicted: Tensor, true: Tensor, weights: Tensor) -> Tensor:
    """Return [B]: squared motion, torso lengths per frame, of feet that stand in the true dance."""
    representation = model.representation
    feet = [representation.positions(values, representation.feet) for values in (predicted, true)]
    moved = [places.diff(dim=1) for places in feet]  # [B, F - 1, n feet, 2] each
    still = moved[1].norm(dim=-1) < STILL_SPEED / model.config.frame_rate  # [B, F - 1, n feet]
    seen = weights[..., NUM_ROOT_COLUMNS::2][..., representation.feet]  # [B, F, n feet]
    return weighted_mean(moved[0].square().sum(-1), still * torch.minimum(seen[:, 1:], seen[:, :-1]))
