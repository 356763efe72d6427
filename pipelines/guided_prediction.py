"""One sampling step's prediction: window by window, guided by the reference and by single guidance types."""

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import ChampModel, GuidanceFeatures
from models.champ.reference_attention import Reference
from models.guidance_encoder import PoseGuidanceEncoder

from .context_windows import WindowGrid, frame_weights
from .sampling_inputs import Guidance
from .schedulers import in_interval


@dataclass(frozen=True)
class GuidanceScales:
    """How far predictions are pushed away from those with less to go by; see `Denoiser`.

    reference: of classifier-free guidance, 1 does without; types: {guidance type: scale}; interval: the noise
    levels (low, high) of the steps that are guided, None all.
    """

    reference: float = 1.0
    types: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    def at(self, reference: float, noise_level: float) -> "GuidanceScales":
        """Return what holds at a noise level, with another scale for the reference."""
        if not in_interval(noise_level, self.interval):
            return GuidanceScales()
        return dataclasses.replace(self, reference=reference)


@dataclass
class WindowFeatures:
    """Guidance features of windows of B clips, made when they are first asked for.

    Kept while free_bytes last, beyond that made anew every time: so memory does not grow with the clip's
    length. 24 frames at 512 have 126 MB of them in float32.
    left_out: types that `of` returns features without; repeats: videos to make of each clip.
    """

    model: ChampModel
    guidance: Guidance
    latent_size: tuple[int, int]
    device: torch.device
    left_out: tuple[str, ...] = ()
    repeats: int = 1
    free_bytes: int = 2**28
    kept: dict[tuple[int, int], dict[str | None, GuidanceFeatures]] = field(default_factory=dict)

    def of(self, window: slice) -> dict[str | None, GuidanceFeatures]:
        """Return {None: features of all types, type: features of all but this one}."""
        key = (window.start, window.stop)
        if key in self.kept:
            return self.kept[key]
        features = {name: self._finished(one) for name, one in self._encode(window).items()}
        num_bytes = sum(part.nbytes for one in features.values() for part in one if part is not None)
        if num_bytes <= self.free_bytes:
            self.free_bytes -= num_bytes
            self.kept[key] = features
        return features

    def _encode(self, window: slice) -> dict[str | None, GuidanceFeatures]:
        conditions = {name: self._read(name, window) for name in self.guidance}
        if not self.left_out:
            return {None: self.model.encode_guidance(conditions, self.latent_size)}
        known = {}  # each type is encoded once
        for name, condition in conditions.items():
            one = self.model.encode_guidance({name: condition}, self.latent_size)
            known[name] = one.vector if one.spatial is None else one.spatial
        rest = {name: {other: known[other] for other in known if other != name} for name in self.left_out}
        return {
            name: self.model.encode_guidance({}, self.latent_size, None, features)
            for name, features in ({None: known} | rest).items()
        }

    def _read(self, name: str, window: slice) -> Tensor:
        """Return a type's condition in a window, [B, n, ...], on the device."""
        source, encoders = self.guidance[name], self.model.guidance_encoders
        condition = source[:, window] if isinstance(source, Tensor) else source[window][None]
        # Key points stay float32: half precision would move them by pixels; their encoder converts by itself.
        is_pose = isinstance(encoders.encoders[name], PoseGuidanceEncoder)
        return condition.to(self.device, torch.float32 if is_pose else encoders.dtype)

    def _finished(self, features: GuidanceFeatures) -> GuidanceFeatures:
        """Return features as the UNet takes them: of its type, where components differ, and repeated."""
        same_type = self.model.guidance_encoders.dtype == self.model.unet.dtype
        parts = [part if part is None or same_type else part.to(self.model.unet.dtype) for part in features]
        return GuidanceFeatures(*(repeat_clips(part, self.repeats) for part in parts))


@dataclass(frozen=True)
class Denoiser:
    """The model, with all that stays the same over the sampling steps of B clips.

    A prediction is guided by differences, with scales g of the reference and s of a type:
    `without reference + g (with - without reference) + sum of s (with - without the type)`.
    """

    model: ChampModel
    bank: dict[str, Reference]
    image_tokens: Tensor  # [B, L, D]
    features: WindowFeatures

    def predict(self, latents: Tensor, timestep: Tensor, grid: WindowGrid, scales: GuidanceScales) -> Tensor:
        """Return the guided prediction, float32 [B, F, 4, h, w], averaged where windows overlap."""
        timesteps = timestep.expand(len(latents))
        total = torch.zeros_like(latents)
        weight = torch.zeros(latents.shape[1], device=latents.device)
        for window in grid.windows:
            noisy = latents[:, window].to(self.model.unet.dtype)
            prediction = self._predict_window(noisy, timesteps, self.features.of(window), scales)
            weights = frame_weights(window.stop - window.start, grid.fade).to(latents.device)
            total[:, window] += prediction.float() * weights[:, None, None, None]
            weight[window] += weights
        return total.div_(weight[:, None, None, None])

    def _predict_window(
        self, noisy: Tensor, timesteps: Tensor, features: dict[str | None, GuidanceFeatures],
        scales: GuidanceScales,
    ) -> Tensor:  # fmt: skip
        tokens, everything = self.image_tokens, features[None]
        with_all = prediction = self.model.denoise(noisy, timesteps, tokens, self.bank, everything)
        if scales.reference != 1.0:
            # As the reference dropout in training: a zero image token and no reference; the guidance stays. A
            # call of its own: without a bank attention costs half of what a masked one does.
            without = self.model.denoise(noisy, timesteps, torch.zeros_like(tokens), None, everything)
            prediction = without + scales.reference * (with_all - without)
        for name, scale in scales.types.items():
            without = self.model.denoise(noisy, timesteps, tokens, self.bank, features[name])
            prediction = prediction + scale * (with_all - without)
        return prediction


def repeat_clips(part: Tensor | None, repeats: int) -> Tensor | None:
    """Return [B * repeats, ...] of [B, ...], each clip's copies side by side."""
    return part if part is None or repeats == 1 else part.repeat_interleave(repeats, dim=0)
