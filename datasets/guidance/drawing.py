"""Skeletons, maps and features as images, for people to look at; nothing here feeds a model.

Every image is uint8 RGB [H, W, 3]; sizes are (height, width) in pixels.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from datasets.transforms import Size

from .openpose import BODY_LIMBS, FACE, FOOT_LIMBS, HAND_LIMBS, HANDS, OPENPOSE_COUNTS

Colour = tuple[int, int, int]
Numbers = np.ndarray | torch.Tensor


def rainbow(position: float) -> Colour:
    """Return RGB of the hue circle; 0 and 1 are red: OpenPose's colours are steps of 1/18."""
    red, green, blue = cv2.cvtColor(np.array([[[360 * position, 1, 1]]], np.float32), cv2.COLOR_HSV2RGB)[0, 0]
    return round(255 * float(red)), round(255 * float(green)), round(255 * float(blue))


def as_numpy(values: Numbers) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().float().cpu().numpy()
    return np.asarray(values)


class _Canvas:
    """An image, drawn large and reduced, so that thin lines stay smooth at 64 or 128 pixels."""

    def __init__(self, size: Size, background: np.ndarray | None) -> None:
        self.size = size
        self.scale = max(1, round(768 / min(size)))
        large = (size[0] * self.scale, size[1] * self.scale)
        if background is None:
            self.pixels = np.zeros((*large, 3), np.uint8)
        else:
            self.pixels = cv2.resize(np.ascontiguousarray(background), large[::-1])
        # Widths are counted in 1/128 of the short side; a body limb is about 2 of these units wide.
        self.unit = max(min(self.pixels.shape[:2]), 64 * self.scale) / 128

    def _pixel(self, point: np.ndarray) -> tuple[int, int]:
        """Return the pixel (x, y) of a point in 0..1; far outside is cut: OpenCV wants 32-bit integers."""
        height, width = self.pixels.shape[:2]
        x, y = np.clip(point[:2], -2, 3) * (width, height)
        return round(float(x)), round(float(y))

    def line(self, start: np.ndarray, end: np.ndarray, colour: Colour, units: float) -> None:
        thickness = max(1, round(units * self.unit))
        cv2.line(self.pixels, self._pixel(start), self._pixel(end), colour, thickness, cv2.LINE_AA)

    def dot(self, centre: np.ndarray, colour: Colour, units: float) -> None:
        radius = max(1, round(units * self.unit / 2))
        cv2.circle(self.pixels, self._pixel(centre), radius, colour, cv2.FILLED, cv2.LINE_AA)

    def image(self) -> np.ndarray:
        return cv2.resize(self.pixels, self.size[::-1], interpolation=cv2.INTER_AREA)


def draw_pose(keypoints: Numbers, size: Size, background: np.ndarray | None = None) -> np.ndarray:
    """Return a skeleton in OpenPose's colours, uint8 [H, W, 3]; absent points are not drawn.

    keypoints: float [K, 3], x and y in 0..1 of the image, then confidence (0: absent). OpenPose's order
    (18 body, 6 feet, 68 face, 2 x 21 hands) for K of 18, 24, 92 or 134; any other K is drawn as points.
    The left hand is drawn blue, the right hand orange. background: uint8 RGB of any size; black without one.
    """
    keypoints = as_numpy(keypoints).astype(np.float64)
    canvas, present = _Canvas(size, background), keypoints[:, 2] > 0
    if len(keypoints) not in OPENPOSE_COUNTS:
        for index in np.flatnonzero(present):
            canvas.dot(keypoints[index], rainbow(index / len(keypoints)), 2.5)
        return canvas.image()

    def limbs(pairs: Sequence[tuple[int, int]], colours: Sequence[Colour], units: float) -> None:
        for (start, end), colour in zip(pairs, colours, strict=True):
            if max(start, end) < len(keypoints) and present[start] and present[end]:
                canvas.line(keypoints[start], keypoints[end], colour, units)

    # Body limbs a little darker than joints, so that joints stand out where limbs cross.
    body_colours = [rainbow(index / 18) for index in range(18)]
    limbs(BODY_LIMBS, [tuple(round(0.8 * c) for c in colour) for colour in body_colours[:17]], 2.2)
    limbs(FOOT_LIMBS, [rainbow(0.62)] * 3 + [rainbow(0.5)] * 3, 1.0)
    for index in np.flatnonzero(present[:18]):
        canvas.dot(keypoints[index], body_colours[index], 2.6)
    for index in 24 + np.flatnonzero(present[FACE]):
        canvas.dot(keypoints[index], (255, 255, 255), 0.8)
    for hand, colour in zip(HANDS, ((80, 160, 255), (255, 160, 60)), strict=True):
        pairs = [(hand.start + start, hand.start + end) for start, end in HAND_LIMBS]
        limbs(pairs, [colour] * len(pairs), 0.9)
        for index in hand.start + np.flatnonzero(present[hand]):
            canvas.dot(keypoints[index], tuple(min(255, c + 60) for c in colour), 1.1)
    return canvas.image()


def draw_map(values: Numbers, size: Size) -> np.ndarray:
    """Return a guidance map as an image, uint8 [H, W, 3].

    values: float [C, h, w]; 1 channel is grey, 3 are RGB, 4 RGBA without its alpha, any other number their
    mean. Values in 0..1 are shown as they are, any other range is stretched to it.
    """
    values = as_numpy(values).astype(np.float64)
    if len(values) not in (3, 4):
        values = values.mean(axis=0, keepdims=True).repeat(3, axis=0)
    values = values[:3]
    if values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / max(np.ptp(values), 1e-12)
    return resize_image(np.round(255 * values.transpose(1, 2, 0)).astype(np.uint8), size)


def draw_features(features: Numbers, frame: int, size: Size) -> np.ndarray:
    """Return features at the current frame, uint8 [H, W, 3]: its values as bars, all frames as a heat strip.

    features: float [F, D] or [F, D, ...] (drawn as the mean of each). Each feature is scaled to its own
    range over the clip; one that never changes is dark. The white cursor in the strip marks `frame`.
    """
    features = as_numpy(features).astype(np.float64)
    features = features.reshape(*features.shape[:2], -1).mean(axis=2)
    low, spread = features.min(axis=0), np.ptp(features, axis=0)
    levels = (features - low) / np.where(spread > 0, spread, 1)  # [F, D] in 0..1

    height, width = size
    bars_height = height // 2
    bars = _bars(levels[frame], (bars_height, width))
    strip = cv2.applyColorMap(np.round(255 * levels.T).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    # Area averaging keeps a beat visible when 4,800 features or 900 frames meet 128 pixels.
    strip = resize_image(strip, (height - bars_height, width))
    column = round((frame + 0.5) / len(levels) * width)
    half = max(1, width // 256)
    strip[:, max(0, column - half - 1) : column + half + 1] = 0  # a dark edge: the map's top is near white
    strip[:, max(0, column - half) : column + half] = 255
    return np.concatenate([bars, strip])


def _bars(levels: np.ndarray, size: Size) -> np.ndarray:
    """Return one bar per feature, levels [D] in 0..1; neighbours share a bar where D is large."""
    height, width = size
    num_bars = min(len(levels), max(1, width // 3))
    heights = [float(group.mean()) for group in np.array_split(levels, num_bars)]
    image = np.full((height, width, 3), 16, np.uint8)
    edges = np.linspace(0, width, num_bars + 1).round().astype(int)
    for index, level in enumerate(heights):
        top = height - max(1, round(level * 0.94 * height))
        left, right = edges[index], max(edges[index] + 1, edges[index + 1] - 1)
        image[top:, left:right] = rainbow(0.8 * index / num_bars)
    return image


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Return the image at (height, width); averaged when it shrinks, hard-edged when it grows."""
    for axis, target in enumerate(size):  # by axis: a strip may grow one way and shrink the other
        length = image.shape[axis]
        shape = (image.shape[1], target) if axis == 0 else (target, image.shape[0])
        interpolation = cv2.INTER_AREA if target < length else cv2.INTER_NEAREST
        image = cv2.resize(np.ascontiguousarray(image), shape, interpolation=interpolation)
    return image
