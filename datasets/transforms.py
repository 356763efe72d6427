"""Geometry and value ranges: one transform per clip, the same for its frames, key points and maps.

The transform resizes the whole frame to an inner rectangle, placed in the output. With `crop` it covers the
output and what hangs over is cut off; with `pad` it fits into the output and black bars fill the rest. It may
also flip the result, and then a left hand becomes a right one.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from datasets.guidance.openpose import flip_order

Size = tuple[int, int]  # (height, width)

CLIP_SIZE = 224
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's CLIP, as in Stable Diffusion
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FITS = ("auto", "crop", "pad")
MAX_CROPPED_ASPECT = 4 / 3  # auto pads what is more than a third off: a crop would cut heads or feet


@dataclass(frozen=True)
class ClipTransform:
    """Where the whole source frame lies in the output: inner_size pixels at offset (top, left).

    flipped: left and right of the output are then exchanged.
    """

    output_size: Size
    inner_size: Size
    offset: Size  # negative: that much is cut off
    flipped: bool = False

    def frames(self, frames: np.ndarray) -> torch.Tensor:
        """Return frames uint8 [F, H, W, 3] as float [F, 3, h, w] in [-1, 1]; bars are black (-1)."""
        return to_signed(np.stack([self.image(frame) for frame in frames]))

    def image(self, image: np.ndarray) -> np.ndarray:
        """Return an image uint8 [H, W, 3] as uint8 [h, w, 3]."""
        return self._flip(self._place(image, np.zeros((*self.output_size, 3), np.uint8)), axis=1)

    def maps(self, maps: np.ndarray) -> torch.Tensor:
        """Return maps float [F, C, H, W] of any size, covering the frame, as float [F, C, h, w]; bars are 0.

        Maps of 256 levels, as most files have, keep to them: resampled as images are, and kept in a byte.
        """
        canvas = np.zeros((*maps.shape[:2], *self.output_size), np.float32)
        for frame, placed in zip(maps, canvas, strict=True):
            for channel, target in zip(frame, placed, strict=True):
                self._place(channel, target)
            if maps.shape[-2:] != self.inner_size and _has_256_levels(frame):
                placed[...] = np.rint(placed.clip(0, 1) * 255) / np.float32(255)
        return torch.from_numpy(np.ascontiguousarray(self._flip(canvas, axis=-1)))

    def key_points(self, points: np.ndarray) -> torch.Tensor:
        """Return points float [F, K, 3] (x, y in 0..1 of the source frame, confidence) in 0..1 of the output.

        A point that falls outside the output becomes absent, [0, 0, 0], as everywhere in this format.
        Flipped, the left hand's points are what the right hand's were: K must be of OpenPose's order.
        """
        scale = np.array(self.inner_size[::-1]) / np.array(self.output_size[::-1])
        shift = np.array(self.offset[::-1]) / np.array(self.output_size[::-1])
        moved = points.astype(np.float64)
        moved[..., :2] = moved[..., :2] * scale + shift
        if self.flipped:
            moved = moved[:, flip_order(points.shape[1])]
            moved[..., 0] = 1 - moved[..., 0]
        inside = (moved[..., :2] >= 0).all(-1) & (moved[..., :2] <= 1).all(-1) & (moved[..., 2] > 0)
        return torch.from_numpy((moved * inside[..., None]).astype(np.float32))

    def _flip(self, image: np.ndarray, axis: int) -> np.ndarray:
        return np.flip(image, axis) if self.flipped else image

    def _place(self, source: np.ndarray, canvas: np.ndarray) -> np.ndarray:
        """Resample [H, W] or [H, W, 3] into the part of canvas that it covers; return canvas."""
        if source.shape[:2] != self.inner_size:
            source = _resize(source, self.inner_size)
        top, left = (max(0, offset) for offset in self.offset)
        above, before = (max(0, -offset) for offset in self.offset)  # of source, what is cut off
        target = canvas[top:, left:]
        shown = source[above : above + target.shape[0], before : before + target.shape[1]]
        target[: shown.shape[0], : shown.shape[1]] = shown
        return canvas


def _resize(image: np.ndarray, size: Size) -> np.ndarray:
    """Resample as Pillow's bicubic, within a level or two and three times as fast."""
    writable = np.require(image, requirements=["C", "W"])  # torch warns of other arrays
    planes = torch.from_numpy(writable).reshape(1, *image.shape[:2], -1).movedim(-1, 1)
    resized = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)
    return resized[0].movedim(0, -1).reshape(*size, *image.shape[2:]).numpy()


def _has_256_levels(values: np.ndarray) -> bool:
    """Return whether float32 values are those of bytes in 0..1."""
    levels = np.rint(values * 255)
    return levels.min() >= 0 and levels.max() <= 255 and np.array_equal(levels / np.float32(255), values)


def make_transform(
    source_size: Size,
    output_size: Size,
    *,
    fit: str = "auto",
    person: tuple[float, float, float, float] | None = None,
    generator: np.random.Generator | None = None,
) -> ClipTransform:
    """Return the transform of a clip.

    fit: auto pads where source and output differ in aspect ratio by more than a third, and crops elsewhere.

    person: (left, top, right, bottom) in 0..1 of the frame; a crop keeps all of it, else its middle.
    generator: draws the crop's place among those that do; without one the person (or the frame) is centred.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {FITS}, got {fit!r}")
    ratios = [out / source for out, source in zip(output_size, source_size, strict=True)]
    if fit == "auto":
        fit = "pad" if max(ratios) / min(ratios) > MAX_CROPPED_ASPECT + 1e-9 else "crop"
    scale = max(ratios) if fit == "crop" else min(ratios)
    inner = tuple(max(1, round(source * scale)) for source in source_size)
    if fit == "pad":
        offset = tuple((out - size) // 2 for out, size in zip(output_size, inner, strict=True))
        return ClipTransform(output_size, inner, offset)
    spans = ((0.5, 0.5), (0.5, 0.5)) if person is None else ((person[1], person[3]), (person[0], person[2]))
    keep_all = person is not None
    starts = [
        _crop_start(size, out, span, keep_all, generator)
        for size, out, span in zip(inner, output_size, spans, strict=True)
    ]
    return ClipTransform(output_size, inner, (-starts[0], -starts[1]))


def _crop_start(size: int, out: int, span: tuple[float, float], has_person: bool, generator) -> int:
    """Return the first kept pixel along one axis of `size` pixels, of which `out` are kept."""
    room = size - out
    low, high = span[0] * size, span[1] * size
    centred = int(np.clip(round((low + high - out) / 2), 0, room))
    if generator is None:
        return centred
    draw = generator.random()  # drawn in any case, so that later draws do not depend on this clip's shape
    if not has_person:
        return min(int(draw * (room + 1)), room)
    first, last = max(0, int(np.ceil(high - out))), min(room, int(low))
    return first + min(int(draw * (last - first + 1)), last - first) if first <= last else centred


def nearest_size(source_size: Size, sizes: Sequence[Size]) -> Size:
    """Return the size of the nearest aspect ratio: the one for which the least is cut off or added."""
    aspect = source_size[1] / source_size[0]
    return min(sizes, key=lambda size: (abs(math.log(size[1] / size[0] / aspect)), -math.prod(size)))


def person_box(points: np.ndarray) -> tuple[float, float, float, float] | None:
    """Return (left, top, right, bottom) over all present key points [F, K, 3] of a clip, cut to the frame."""
    present = points[points[..., 2] > 0][:, :2]
    if len(present) == 0:
        return None
    (left, top), (right, bottom) = np.clip(present.min(0), 0, 1), np.clip(present.max(0), 0, 1)
    return float(left), float(top), float(right), float(bottom)


def to_signed(images: np.ndarray) -> torch.Tensor:
    """Return uint8 [..., H, W, 3] as float [..., 3, H, W] in [-1, 1]."""
    planes = np.moveaxis(images, -1, -3)
    signed = np.divide(planes, np.float32(127.5), out=np.empty(planes.shape, np.float32))  # 7 x torch's speed
    signed -= 1
    return torch.from_numpy(signed)


def reference_transform(
    image: np.ndarray | Image.Image, size: int | Size, fit: str = "auto", *, flipped: bool = False
) -> torch.Tensor:
    """Return a reference image (PIL or uint8 [H, W, 3]), fitted, as float [3, h, w] in [-1, 1]."""
    pixels = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
    transform = make_transform(pixels.shape[:2], as_size(size), fit=fit)
    return to_signed(dataclasses.replace(transform, flipped=flipped).image(pixels))


def clip_image_transform(image: np.ndarray | Image.Image | torch.Tensor) -> torch.Tensor:
    """Return a fitted reference (PIL, uint8 [H, W, 3] or float [3, H, W] in [-1, 1]) as CLIP's [3, 224, 224].

    Give what reference_transform returns, so that training and sampling agree. It is squeezed to a square, as
    in CHAMP's inference: CLIP's own centre crop would cut off a standing dancer's head and feet.
    """
    if isinstance(image, torch.Tensor):
        pixels = ((image.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
        image = pixels.permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    resized = np.asarray(image.convert("RGB").resize((CLIP_SIZE, CLIP_SIZE), Image.BICUBIC), np.float32) / 255
    normalised = (resized - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(np.moveaxis(normalised, -1, 0).copy())


def as_size(resolution: int | Size) -> Size:
    """Return (height, width) of a resolution given as one number or two."""
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    return int(height), int(width)
