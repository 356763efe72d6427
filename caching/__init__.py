"""Latents and features kept on disk: their files, fingerprints, building and reading."""

from .cached_clips import CachedClips
from .feature_cache import FeatureCache
from .latent_cache import LatentCache

__all__ = ["CachedClips", "FeatureCache", "LatentCache"]
