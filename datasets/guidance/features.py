"""Features: one vector [D], or one map [D, H, W], per row, in .npy files (music, and types of the user's)."""

from collections.abc import Sequence

from .kind import GuidanceKind, register_guidance_kind
from .track import Track


@register_guidance_kind("music")
class Features(GuidanceKind):
    """Rows float32 [D] or [D, H, W], as stored."""

    name = "features"
    suffixes = whole_suffixes = (".npy",)
    ndims = (1, 3)
    counted = "features"

    def is_map(self, track: Track, row_shape: Sequence[int]) -> bool:
        """Return whether rows are 3-D and not of music, which has no place in the frame."""
        return len(row_shape) == 3 and track.type_name != "music"
