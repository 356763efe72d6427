"""Maps: one image file per row that covers the video's frame (depth, normals, drawn skeletons, ...).

Values are data: a colour profile does not change them. Orientation is honoured; what is transparent is black
where no channel is left for it.
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.media.pictures import camera_turn, turned_upright
from datasets.packed_files import read_bytes
from datasets.transforms import Size
from system.errors import DataError

from .drawing import draw_map
from .kind import GuidanceKind, register_guidance_kind
from .track import Track

CONVERSIONS = {  # {(channels of the file, channels wanted): OpenCV's conversion}
    (1, 1): None, (3, 3): cv2.COLOR_BGR2RGB, (4, 4): cv2.COLOR_BGRA2RGBA,
    (1, 3): cv2.COLOR_GRAY2RGB, (4, 3): cv2.COLOR_BGRA2RGB, (3, 1): cv2.COLOR_BGR2GRAY,
    (4, 1): cv2.COLOR_BGRA2GRAY,
}  # fmt: skip


@register_guidance_kind()
class Maps(GuidanceKind):
    """Rows float32 [C, H, W] in 0..1 of the file's number type; grey and colour are converted as C asks."""

    name = "maps"
    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
    in_frame = True
    constant_fault = ("image", "write the maps again", "warning")

    def load_row(self, path: Path, num_channels: int) -> np.ndarray:
        content = read_bytes(path) or b"\0"
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:
            raise DataError(path, "is not a readable image", "replace the file")
        if (num_images := count_images(path, content)) > 1:
            raise DataError(path, f"holds {num_images} images", "write one file per frame of the video")
        image = np.ascontiguousarray(turned_upright(image, camera_turn(content)))
        if image.ndim == 3 and image.shape[2] == 4 > num_channels:
            image = on_black(image)
        key = (1 if image.ndim == 2 else image.shape[2], num_channels)
        if key not in CONVERSIONS:
            numbers = [str(wanted) for found, wanted in sorted(CONVERSIONS) if found == key[0]]
            fix = "write images of 1, 3 or 4 channels"
            if numbers:
                fix = f"set the type's --guidance_input_channels to {' or '.join(numbers)}"
            raise DataError(path, f"an image of {key[0]} channels cannot give {num_channels}", fix)
        if CONVERSIONS[key] is not None:
            image = cv2.cvtColor(image, CONVERSIONS[key])
        if image.dtype.kind == "u":
            image = image.astype(np.float32) / np.iinfo(image.dtype).max
        if not np.isfinite(image).all():
            raise DataError(path, "NaN or infinite values", "write the map again")
        return np.moveaxis(image.reshape(*image.shape[:2], num_channels), -1, 0).astype(np.float32)

    def check_row(self, track: Track, row: int, values: np.ndarray, num_channels: int) -> np.ndarray:
        return values  # checked as it was read

    def is_map(self, track: Track, row_shape: Sequence[int]) -> bool:
        return True

    def draw(self, condition: np.ndarray, frame: int, size: Size, background=None) -> np.ndarray:
        return draw_map(condition[frame], size)


def count_images(path: Path, content: bytes) -> int:
    """Return how many pages or frames a picture has, where its first bytes tell that there may be several."""
    is_animated = b"ANIM" in content[:64] or b"acTL" in content[:128]
    if not is_animated and path.suffix.lower() not in (".tif", ".tiff"):
        return 1
    with contextlib.suppress(OSError), Image.open(io.BytesIO(content)) as image:  # only OpenCV may know it
        return getattr(image, "n_frames", 1)
    return 1


def on_black(image: np.ndarray) -> np.ndarray:
    """Return [H, W, 4] without its last channel: where that is transparent, black."""
    alpha, most = image[..., 3:], np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
    if alpha.min() == most:
        return image[..., :3].copy()
    colours = image[..., :3] * (alpha / np.float64(most))
    return (np.rint(colours) if image.dtype.kind == "u" else colours).astype(image.dtype)
