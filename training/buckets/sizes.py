"""The sizes that --aspect_buckets asks for.

Those of `auto` are made as kohya's scripts make them: at most the area of --resolution, sides in steps of 64
at 512 and above, the shorter one at least half of the square's.
"""

import math
import re
from collections.abc import Sequence

from datasets.transforms import Size
from system.errors import ConfigError

OFF, AUTO = ["none"], ["auto"]
LARGEST_STEP, SMALLEST_STEP = 64, 8  # a VAE of factor 8; and a UNet that halves three times
STEPS_PER_SIDE = 8
EXAMPLE = "--aspect_buckets 640x384 512x512 384x640"


def bucket_sizes(asked: Sequence[str], resolution: Sequence[int]) -> tuple[Size, ...]:
    """Return the (height, width) of each bucket, the most upright first; () where there are none.

    asked: the values of --aspect_buckets; also as diffusers' scripts write them, "640,384;512,512". Raises
    ConfigError.
    """
    if list(asked) in ([], OFF):
        return ()
    if list(asked) == AUTO:
        sizes = auto_sizes(resolution[0], resolution[-1])
    else:
        sizes = {_read_size(word) for words in asked for word in re.split(r"[;\s]+", words.strip(";"))}
    return tuple(sorted(sizes, key=lambda size: (size[1] / size[0], size)))


def auto_sizes(height: int, width: int) -> set[Size]:
    """Return sizes of about one area, at most height x width, from 4 times as high to 4 times as wide."""
    area = height * width
    side = math.sqrt(area)
    step = 2 ** round(math.log2(side / STEPS_PER_SIDE))
    step = min(LARGEST_STEP, max(SMALLEST_STEP, step))
    sizes = {(height, width)}
    for short in range(math.ceil(side / 2 / step) * step, math.ceil(side), step):
        long = area // short // step * step
        sizes |= {(long, short), (short, long)}
    return sizes


def _read_size(word: str) -> Size:
    found = re.fullmatch(r"(\d+)[x,](\d+)", word)
    sides = tuple(map(int, found.groups())) if found else (0, 0)
    if any(side == 0 or side % SMALLEST_STEP for side in sides):
        raise ConfigError(
            f"--aspect_buckets {word}: give auto, none, or sizes as HEIGHTxWIDTH, sides multiples of "
            f"{SMALLEST_STEP}, for example {EXAMPLE}"
        )
    return sides


def shown_size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
