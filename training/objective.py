"""CHAMP's training objective: noise schedule, noise, target, loss weight and loss of one batch.

Every draw comes from a generator of (seed, position of the sample in the stream of all), so a run that is
resumed, accumulated or spread over processes draws the same numbers.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from datasets.body.regions import type_of_person, weight_map
from system.errors import ConfigError
from system.user_code import load_user_object


@dataclass
class Draw:
    """The random numbers of one batch of B clips."""

    noise: Tensor  # [B, F, 4, h, w], offset included
    timesteps: Tensor  # int64 [B]
    reference_mask: Tensor  # bool [B], False: trained without reference
    guidance_mask: dict[str, Tensor]  # {type: bool [B]}, False: trained without this type


def make_noise_scheduler(prediction_type: str = "v_prediction") -> DDIMScheduler:
    """Return the schedule of training and sampling: scaled_linear betas rescaled to zero terminal SNR.

    The original samples with linear betas; we sample with the training schedule. Predicting the noise says
    nothing at zero SNR (the input is the answer), so `epsilon` keeps Stable Diffusion's own betas.
    """
    zero_terminal_snr = prediction_type != "epsilon"
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero_terminal_snr,
    )


def bias_timesteps(num_timesteps: int, strategy: str, multiplier: float, portion: float) -> Tensor | None:
    """Return the weight of each timestep, float32 [T], the `portion` of a strategy's counting `multiplier`.

    Strategies: "earlier" (the least noise), "later" (the most), "none" (returns None). The loss of a drawn
    sample keeps its weight: what is drawn more often counts more. (As in diffusers' SDXL example.)
    """
    if strategy == "none":
        return None
    weights, num_biased = torch.ones(num_timesteps), max(1, round(portion * num_timesteps))
    biased = slice(None, num_biased) if strategy == "earlier" else slice(-num_biased, None)
    weights[biased] *= multiplier
    return weights


@dataclass
class DiffusionObjective:
    """Draws, noises and scores a batch.

    `timestep_weights` [T]: how often each timestep is drawn, in proportion (see `bias_timesteps`); None: all
    alike. `guidance_dropout` is one probability per guidance type; `region_weights` {region: weight} need
    key points of the person among the guidance; `extra_loss` is the user's own term,
    `extra_loss(model_pred, target, guidance_condition)` -> scalar, or None.
    """

    scheduler: DDIMScheduler
    _: KW_ONLY
    snr_gamma: float | None = 5.0
    noise_offset: float = 0.05
    timestep_weights: Tensor | None = None
    reference_dropout: float = 0.1
    guidance_dropout: dict[str, float] = field(default_factory=dict)
    region_weights: dict[str, float] = field(default_factory=dict)
    extra_loss: Callable | None = None

    @property
    def prediction_type(self) -> str:
        return self.scheduler.config.prediction_type

    def draw(self, latents: Tensor, seeds: Sequence[Sequence[int]]) -> Draw:
        """Return the random numbers for latents [B, F, 4, h, w], sample b from the numbers in seeds[b]."""
        draws = [self._draw_sample(latents.shape[1:], seed) for seed in seeds]
        device = latents.device
        return Draw(
            noise=torch.stack([draw.noise for draw in draws]).to(device),
            timesteps=torch.stack([draw.timesteps for draw in draws]).to(device),
            reference_mask=torch.stack([draw.reference_mask for draw in draws]).to(device),
            guidance_mask={
                name: torch.stack([draw.guidance_mask[name] for draw in draws]).to(device)
                for name in self.guidance_dropout
            },
        )

    def _draw_sample(self, shape: torch.Size, seed: Sequence[int]) -> Draw:
        # On the CPU, so that every device trains on the same numbers; at 512 it is 0.3 million of them.
        generator = torch.Generator().manual_seed(mix_seed(*seed))
        noise = torch.randn(shape, generator=generator)  # [F, 4, h, w]
        # One offset per clip and channel (https://www.crosslabs.org/blog/diffusion-with-offset-noise).
        noise += self.noise_offset * torch.randn((1, shape[1], 1, 1), generator=generator)
        if self.timestep_weights is None:
            timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (), generator=generator)
        else:
            timesteps = torch.multinomial(self.timestep_weights, 1, generator=generator)[0]
        keep = torch.rand(1 + len(self.guidance_dropout), generator=generator)
        kept_types = {
            name: keep[1 + place] >= share
            for place, (name, share) in enumerate(self.guidance_dropout.items())
        }
        return Draw(noise, timesteps, keep[0] >= self.reference_dropout, kept_types)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        return noise if self.prediction_type == "epsilon" else latents

    def loss_weights(self, timesteps: Tensor) -> Tensor:
        """Return the weight of each sample's squared error, float32 [B] (Min-SNR, arXiv:2303.09556).

        For v-prediction CHAMP's form min(snr + 1, gamma) / (snr + 1): the usual min(snr, gamma) / (snr + 1)
        would give the last step, where snr is 0, no weight at all.
        """
        if self.snr_gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        alphas_cumprod = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = alphas_cumprod / (1.0 - alphas_cumprod)
        if self.prediction_type == "v_prediction":
            return (snr + 1.0).clamp(max=self.snr_gamma) / (snr + 1.0)
        capped = snr.clamp(max=self.snr_gamma)
        return capped / snr if self.prediction_type == "epsilon" else capped

    def sample_losses(
        self, model_pred: Tensor, target: Tensor, timesteps: Tensor, error_weights: Tensor | None = None
    ) -> Tensor:
        """Return the weighted mean squared error of each sample, float32 [B].

        error_weights: of each latent pixel's error, [B, F, 1, h, w]; None: all 1. The mean is not divided by
        their own, as in MimicMotion (arXiv:2406.19680): what is outside a region counts as without them.
        """
        squared_error = (model_pred.float() - target.float()).square()
        if error_weights is not None:
            squared_error = squared_error * error_weights
        return squared_error.flatten(1).mean(1) * self.loss_weights(timesteps)

    def error_weights(self, guidance: dict[str, Tensor], latents: Tensor) -> Tensor | None:
        """Return the weight of each pixel of latents [B, F, 4, h, w], [B, F, 1, h, w]; None: all 1."""
        if not self.region_weights:
            return None
        points = guidance[type_of_person(frame_shapes(guidance))]
        return weight_map(points, self.region_weights, latents.shape[-2:])

    def types_read(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """Return the guidance types whose conditions the loss itself reads, beside the model.

        shapes: {type: shape of one frame's condition}.
        """
        if self.extra_loss is not None:  # a user's own may read any of them
            return list(shapes)
        return [type_of_person(shapes)] if self.region_weights else []

    def __call__(self, model, latents: Tensor, conditions: dict, draw: Draw) -> Tensor:
        """Return the loss, a scalar, of `latents` [B, F, 4, h, w].

        `conditions` holds reference_latents [B, 4, h, w], image_tokens [B, L, D] and guidance {type: tensor},
        and where they are known already reference_bank and guidance_features, as the model takes them.
        """
        # The unconditional sample, here and in sampling: no reference attention and a zero image token.
        image_tokens = conditions["image_tokens"] * draw.reference_mask[:, None, None]
        model_pred = model(
            self.add_noise(latents, draw.noise, draw.timesteps),
            draw.timesteps,
            conditions["reference_latents"],
            image_tokens,
            conditions["guidance"],
            reference_mask=draw.reference_mask,
            guidance_mask=draw.guidance_mask,
            reference_bank=conditions.get("reference_bank"),
            guidance_features=conditions.get("guidance_features"),
        )  # [B, F, 4, h, w]
        target = self.target(latents, draw.noise, draw.timesteps)
        error_weights = self.error_weights(conditions["guidance"], latents)
        loss = self.sample_losses(model_pred, target, draw.timesteps, error_weights).mean()
        if self.extra_loss is not None:
            loss = loss + call_extra_loss(self.extra_loss, model_pred, target, conditions["guidance"])
        return loss


def frame_shapes(guidance: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    """Return {type: shape of one frame's condition} of a batch's conditions [B, F, ...]."""
    return {name: condition.shape[2:] for name, condition in guidance.items()}


def mix_seed(*numbers: int) -> int:
    """Return one seed in 0 .. 2^63 - 1 that depends on every one of `numbers` and on their order."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:  # splitmix64's finaliser after each number
        mixed = (mixed ^ (number & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seed PyTorch's own generators, for what a model draws by itself (dropout in a user's encoder)."""
    torch.manual_seed(mix_seed(seed, rank, step))


def call_extra_loss(extra_loss: Callable, model_pred: Tensor, target: Tensor, guidance: dict) -> Tensor:
    """Return the user's loss term. Raises ConfigError when it is not a scalar tensor."""
    value = extra_loss(model_pred, target, guidance)
    if not isinstance(value, Tensor) or value.dim() != 0:
        found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        name = getattr(extra_loss, "__name__", extra_loss)
        raise ConfigError(
            f"--loss: {name} returned {found}; expected one number, a scalar tensor: use .mean()"
        )
    return value


def load_extra_loss(spec: str | None) -> Callable | None:
    """Return the function of --loss MODULE:FUNCTION, or None. Raises ConfigError."""
    if spec is None:
        return None
    extra_loss = load_user_object(spec, "--loss")
    try:
        inspect.signature(extra_loss).bind(None, None, None)
    except TypeError:
        raise ConfigError(
            f"--loss {spec}: the function must take (model_pred, target, guidance_condition)"
        ) from None
    return extra_loss
