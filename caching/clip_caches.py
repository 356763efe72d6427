"""The caches of a run's training clips: latents, and the features of frozen parts on top of them."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from datasets import GuidanceDataset
from datasets.transforms import Size
from models import ChampModel, FrozenEncoders

from .building import CacheEncoder, build_cache
from .cached_clips import CachedClips
from .feature_cache import FeatureCache
from .feature_encoding import FeatureEncoder
from .latent_cache import LatentCache
from .latent_shards import LatentShards
from .source_digests import weights_digest


@dataclass(frozen=True)
class CachePlan:
    """Where the caches are, and how their content is computed: as training would compute it."""

    cache_dir: Path
    precision: torch.dtype  # of the frozen encoders and of autocast
    allow_tf32: bool
    batch_size: int
    clip_size: Size  # (height, width); of the largest clip

    @property
    def precision_name(self) -> str:
        return str(self.precision).removeprefix("torch.") + (" with TF32" if self.allow_tf32 else "")


class ClipCaches:
    """Both caches for the samples `indices` of a training set."""

    def __init__(
        self, plan: CachePlan, train_set: GuidanceDataset, indices: list[int], frozen: FrozenEncoders
    ):  # fmt: skip
        self.plan, self.train_set, self.indices, self.frozen = plan, train_set, indices, frozen
        height, width = plan.clip_size
        self.latent_size = (height // frozen.latent_factor, width // frozen.latent_factor)

    @property
    def latent_bytes(self) -> int:
        """The size of one frame's latents in the latent cache."""
        channels = self.frozen.num_moments * self.frozen.vae.config.latent_channels
        return channels * math.prod(self.latent_size) * self.plan.precision.itemsize

    def latent_fingerprint(self) -> dict[str, str]:
        """Return the fingerprint of the frozen encoders."""
        digests = {name: weights_digest(part) for name, part in self.frozen.named_children()}
        return {**digests, "precision": self.plan.precision_name}

    def feature_fingerprint(self, model: ChampModel) -> dict[str, str | list[str]]:
        """Return the fingerprint of the model's frozen parts."""
        encoders = model.guidance_encoders
        return {
            "reference_unet": weights_digest(model.reference_unet),
            "guidance_encoders": weights_digest(encoders),
            "types": encoders.frame_by_frame_types,
            "precision": self.plan.precision_name,
        }

    def feature_encoder(self, model: ChampModel, accelerator: Accelerator) -> FeatureEncoder:
        return FeatureEncoder(
            model, accelerator, batch_shape=(self.plan.batch_size, self.train_set.sequence_length),
            latent_size=self.latent_size, dtype=self.plan.precision,
        )  # fmt: skip

    def open_latents(self, accelerator: Accelerator, say: Callable[[str], None]) -> CachedClips:
        """Return the clips from the latent cache, which is built first where it is not complete."""
        train_set, plan = self.train_set, self.plan
        cache = LatentCache(train_set, plan.cache_dir, self.latent_fingerprint())
        if isinstance(train_set, LatentShards):
            train_set.check_encoded_by(cache.settings)
            return train_set
        encoder = CacheEncoder(
            self.frozen, accelerator.device, batch_size=plan.batch_size,
            sequence_length=train_set.sequence_length,
        )  # fmt: skip
        num_bytes = functools.partial(cache.num_bytes, latent_bytes=self.latent_bytes)
        paths = build_cache(cache, self.indices, encoder, accelerator, num_bytes=num_bytes, say=say)
        return CachedClips(
            paths, train_set.sample_ids, sequence_length=train_set.sequence_length,
            frame_stride=train_set.frame_stride, seed=train_set.seed,
        )  # fmt: skip

    def add_features(
        self, clips: CachedClips, model: ChampModel, accelerator: Accelerator, say: Callable[[str], None],
        *, kept_conditions: Sequence[str] = (),
    ) -> list[str]:  # fmt: skip
        """Let the clips bring the features of the model's frozen parts; return the types that have them.

        They are built first where they are missing. Of a sharded model all processes need the whole weights.
        The clips bring the conditions of the types `kept_conditions` all the same.
        """
        encoder = self.feature_encoder(model, accelerator)
        cache = FeatureCache(clips.paths, self.plan.cache_dir, self.feature_fingerprint(model))
        num_bytes = functools.partial(cache.num_bytes, encoder=encoder)
        paths = build_cache(cache, list(clips.paths), encoder, accelerator, num_bytes=num_bytes, say=say)
        unread = [name for name in encoder.guidance_types if name not in kept_conditions]
        clips.add_features(paths, unread_types=unread)
        return encoder.guidance_types

    def expected_bytes(self, feature_encoder: FeatureEncoder | None) -> dict[str, int]:
        """Return about what each cache takes, {its title: bytes}; no encoder: no features."""
        num_frames, num_samples = sum(map(self.train_set.num_frames, self.indices)), len(self.indices)
        cache = LatentCache(self.train_set, self.plan.cache_dir, {})
        sizes = {cache.title: cache.num_bytes(num_frames, num_samples, self.latent_bytes)}
        if feature_encoder is not None:
            features = FeatureCache({}, self.plan.cache_dir, {})
            sizes[features.title] = features.num_bytes(num_frames, num_samples, feature_encoder)
        return sizes
