"""Skeletons and maps as pictures, for people to look at; nothing here feeds a model.

Every picture is uint8 RGB [H, W, 3]; sizes are (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from datasets.transforms import Size

from .key_points import OPENPOSE_COUNTS

Colour = tuple[int, int, int]

# OpenPose's 18 body points: pairs of a limb, in the order of OpenPose's colours. 1 is the neck; 2-4 and 8-10
# are the person's right arm and leg, on the viewer's left when the person faces the camera.
BODY_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
FOOT_LIMBS = ((13, 18), (13, 19), (13, 20), (10, 21), (10, 22), (10, 23))  # ankle to big toe, small toe, heel
HAND_LIMBS = tuple((0 if joint == 0 else 4 * finger + joint, 4 * finger + joint + 1)
                   for finger in range(5) for joint in range(4))  # fmt: skip
FACE = slice(24, 92)
HANDS = (slice(92, 113), slice(113, 134))  # left, right: the person's own


def rainbow(position: float) -> Colour:
    """RGB of the hue circle, 0 and 1 are red: OpenPose's colours are its steps of 1/18."""
    red, green, blue = cv2.cvtColor(np.array([[[360 * position, 1, 1]]], np.float32), cv2.COLOR_HSV2RGB)[0, 0]
    return round(255 * float(red)), round(255 * float(green)), round(255 * float(blue))


def as_numpy(values: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().float().cpu().numpy()
    return np.asarray(values)


class _Canvas:
    """A picture, drawn large and reduced, so that thin lines stay smooth at 64 or 128 pixels."""

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
        """Pixel (x, y) of a point given in 0..1; far outside is cut, since OpenCV wants 32-bit integers."""
        height, width = self.pixels.shape[:2]
        x, y = np.clip(point[:2], -2, 3) * (width, height)
        return round(float(x)), round(float(y))

    def line(self, start: np.ndarray, end: np.ndarray, colour: Colour, units: float) -> None:
        thickness = max(1, round(units * self.unit))
        cv2.line(self.pixels, self._pixel(start), self._pixel(end), colour, thickness, cv2.LINE_AA)

    def dot(self, centre: np.ndarray, colour: Colour, units: float) -> None:
        radius = max(1, round(units * self.unit / 2))
        cv2.circle(self.pixels, self._pixel(centre), radius, colour, cv2.FILLED, cv2.LINE_AA)

    def picture(self) -> np.ndarray:
        return cv2.resize(self.pixels, self.size[::-1], interpolation=cv2.INTER_AREA)


def draw_pose(
    keypoints: np.ndarray | torch.Tensor, size: Size, background: np.ndarray | None = None
) -> np.ndarray:
    """A skeleton in OpenPose's colours, uint8 [H, W, 3]; absent points are not drawn.

    keypoints: float [K, 3], x and y in 0..1 of the picture, then confidence (0: absent). OpenPose's order
    (18 body, 6 feet, 68 face, 2 x 21 hands) for K of 18, 24, 92 or 134; any other K is drawn as points.
    The left hand is drawn blue, the right hand orange. background: uint8 RGB of any size; black without one.
    """
    keypoints = as_numpy(keypoints).astype(np.float64)
    canvas, present = _Canvas(size, background), keypoints[:, 2] > 0
    if len(keypoints) not in OPENPOSE_COUNTS:
        for index in np.flatnonzero(present):
            canvas.dot(keypoints[index], rainbow(index / len(keypoints)), 2.5)
        return canvas.picture()

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
    return canvas.picture()


def draw_map(values: np.ndarray | torch.Tensor, size: Size) -> np.ndarray:
    """A guidance map as a picture, uint8 [H, W, 3].

    values: float [C, h, w]; 1 channel is grey, 3 are RGB, 4 RGBA without its alpha, any other number their
    mean. Values in 0..1 are shown as they are, any other range is stretched to it.
    """
    values = as_numpy(values).astype(np.float64)
    if len(values) not in (3, 4):
        values = values.mean(axis=0, keepdims=True).repeat(3, axis=0)
    values = values[:3]
    if values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / max(np.ptp(values), 1e-12)
    return resize_picture(np.round(255 * values.transpose(1, 2, 0)).astype(np.uint8), size)


def resize_picture(picture: np.ndarray, size: Size) -> np.ndarray:
    """The picture at (height, width); averaged when it shrinks, hard-edged when it grows."""
    for axis, target in enumerate(size):  # by axis: a strip may grow one way and shrink the other
        length = picture.shape[axis]
        shape = (picture.shape[1], target) if axis == 0 else (target, picture.shape[0])
        interpolation = cv2.INTER_AREA if target < length else cv2.INTER_NEAREST
        picture = cv2.resize(np.ascontiguousarray(picture), shape, interpolation=interpolation)
    return picture
