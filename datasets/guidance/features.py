"""Features: one vector [D], or one map [D, H, W], per row, in .npy files (music, and types of the user's)."""

from __future__ import annotations

from collections.abc import Sequence

from .kind import GuidanceKind, register_guidance_kind
from .track import Track


@register_guidance_kind("music")
class Features(GuidanceKind):
    """Rows float32 [D] or [D, H, W], as stored."""

    name = "features"
    suffixes = whole_suffixes = (".npy",)

    def is_row_shape(self, shape: Sequence[int], num_channels: int) -> bool:
        return len(shape) in (1, 3) and shape[0] == num_channels

    def expected_shape(self, num_channels: int) -> str:
        return f"({num_channels},) or ({num_channels}, H, W)"

    def is_map(self, track: Track, row_shape: Sequence[int]) -> bool:
        """Return whether rows are 3-D and not of music, which has no place in the frame."""
        return len(row_shape) == 3 and track.type_name != "music"

    def draws(self, shape: Sequence[int]) -> bool:
        return True  # what no other kind does
