"""Pictures of guidance and side-by-side panels, for people to look at.

Nothing here feeds a model. Every drawing is uint8 RGB, [H, W, 3] for one frame and [F, H, W, 3] for a clip;
sizes are (height, width) in pixels.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

Size = tuple[int, int]
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
KEY_POINT_COUNTS = (18, 24, 92, 134)  # body; with feet; with face; with hands. Any other K is drawn as points

SEPARATOR_WIDTH = 2
SEPARATOR_COLOUR = (70, 70, 70)


def _rainbow(position: float) -> Colour:
    """RGB of the hue circle, 0 and 1 are red: OpenPose's colours are its steps of 1/18."""
    red, green, blue = cv2.cvtColor(np.array([[[360 * position, 1, 1]]], np.float32), cv2.COLOR_HSV2RGB)[0, 0]
    return round(255 * float(red)), round(255 * float(green)), round(255 * float(blue))


def _as_numpy(values: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().float().cpu().numpy()
    return np.asarray(values)


class _Canvas:
    """A black picture, drawn large and reduced, so that thin lines stay smooth at 64 or 128 pixels."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.scale = max(1, round(768 / min(size)))
        self.pixels = np.zeros((size[0] * self.scale, size[1] * self.scale, 3), np.uint8)
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


def draw_pose(keypoints: np.ndarray | torch.Tensor, size: Size) -> np.ndarray:
    """A skeleton in OpenPose's colours on black, uint8 [H, W, 3]; absent points are not drawn.

    keypoints: float [K, 3], x and y in 0..1 of the picture, then confidence (0: absent). OpenPose's order
    (18 body, 6 feet, 68 face, 2 x 21 hands) for K of 18, 24, 92 or 134; any other K is drawn as points.
    The left hand is drawn blue, the right hand orange.
    """
    keypoints = _as_numpy(keypoints).astype(np.float64)
    canvas, present = _Canvas(size), keypoints[:, 2] > 0
    if len(keypoints) not in KEY_POINT_COUNTS:
        for index in np.flatnonzero(present):
            canvas.dot(keypoints[index], _rainbow(index / len(keypoints)), 2.5)
        return canvas.picture()

    def limbs(pairs: Sequence[tuple[int, int]], colours: Sequence[Colour], units: float) -> None:
        for (start, end), colour in zip(pairs, colours, strict=True):
            if max(start, end) < len(keypoints) and present[start] and present[end]:
                canvas.line(keypoints[start], keypoints[end], colour, units)

    # Body limbs a little darker than joints, so that joints stand out where limbs cross.
    body_colours = [_rainbow(index / 18) for index in range(18)]
    limbs(BODY_LIMBS, [tuple(round(0.8 * c) for c in colour) for colour in body_colours[:17]], 2.2)
    limbs(FOOT_LIMBS, [_rainbow(0.62)] * 3 + [_rainbow(0.5)] * 3, 1.0)
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


def draw_music(features: np.ndarray | torch.Tensor, frame: int, size: Size) -> np.ndarray:
    """Music around the current frame, uint8 [H, W, 3]: its values as bars, all frames as a heat strip.

    features: float [F, D] or [F, D, H, W] (drawn as its spatial mean). Each feature is scaled to its own
    range over the clip; one that never changes is dark. The white cursor in the strip marks `frame`.
    """
    features = _as_numpy(features).astype(np.float64)
    features = features.reshape(*features.shape[:2], -1).mean(axis=2)
    low, spread = features.min(axis=0), np.ptp(features, axis=0)
    levels = (features - low) / np.where(spread > 0, spread, 1)  # [F, D] in 0..1

    height, width = size
    bars_height = height // 2
    bars = _bars(levels[frame], (bars_height, width))
    strip = cv2.applyColorMap(np.round(255 * levels.T).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    # Area averaging keeps a beat visible when 4,800 features or 900 frames meet 128 pixels.
    strip = _resize(strip, (height - bars_height, width))
    column = round((frame + 0.5) / len(levels) * width)
    half = max(1, width // 256)
    strip[:, max(0, column - half - 1) : column + half + 1] = 0  # a dark edge: the map's top is near white
    strip[:, max(0, column - half) : column + half] = 255
    return np.concatenate([bars, strip])


def _bars(levels: np.ndarray, size: Size) -> np.ndarray:
    """One bar per feature, levels [D] in 0..1; neighbours share a bar where D is large."""
    height, width = size
    num_bars = min(len(levels), max(1, width // 3))
    heights = [float(group.mean()) for group in np.array_split(levels, num_bars)]
    picture = np.full((height, width, 3), 16, np.uint8)
    edges = np.linspace(0, width, num_bars + 1).round().astype(int)
    for index, level in enumerate(heights):
        top = height - max(1, round(level * 0.94 * height))
        left, right = edges[index], max(edges[index] + 1, edges[index + 1] - 1)
        picture[top:, left:right] = _rainbow(0.8 * index / num_bars)
    return picture


def draw_map(values: np.ndarray | torch.Tensor, size: Size) -> np.ndarray:
    """A guidance map as a picture, uint8 [H, W, 3].

    values: float [C, h, w]; 1 channel is grey, 3 are RGB, 4 RGBA without its alpha, any other number their
    mean. Values in 0..1 are shown as they are, any other range is stretched to it.
    """
    values = _as_numpy(values).astype(np.float64)
    if len(values) not in (3, 4):
        values = values.mean(axis=0, keepdims=True).repeat(3, axis=0)
    values = values[:3]
    if values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / max(np.ptp(values), 1e-12)
    return _resize(np.round(255 * values.transpose(1, 2, 0)).astype(np.uint8), size)


def draw_guidance(condition: np.ndarray | torch.Tensor, size: Size) -> np.ndarray:
    """One guidance type of a clip, drawn frame by frame: uint8 [F, H, W, 3].

    condition: key points [F, K, 3], vectors [F, D], or maps [F, C, h, w]; maps of more than 4 channels are
    features (3-D music), not pictures, and are drawn as music is.
    """
    condition = _as_numpy(condition)
    num_frames = len(condition)
    if condition.ndim == 3:
        return np.stack([draw_pose(keypoints, size) for keypoints in condition])
    if condition.ndim == 4 and condition.shape[1] <= 4:
        return np.stack([draw_map(values, size) for values in condition])
    return np.stack([draw_music(condition, frame, size) for frame in range(num_frames)])


def frames_to_uint8(frames: torch.Tensor) -> np.ndarray:
    """uint8 [F, H, W, 3] of frames [F, 3, H, W] in -1..1."""
    pixels = (frames.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def make_panel(columns: Sequence[np.ndarray], captions: Sequence[str] | None = None) -> np.ndarray:
    """Columns side by side with thin separators, uint8 [F, H, W_total, 3]; both sides even, as h264 wants.

    columns: uint8 [F, H, W, 3] each, or [H, W, 3] for a still picture, which is repeated. Captions go above.
    """
    num_frames = max((len(column) for column in columns if column.ndim == 4), default=1)
    clips = [np.broadcast_to(c, (num_frames, *c.shape[-3:])) if c.ndim == 3 else c for c in columns]
    if len({clip.shape[:2] for clip in clips}) > 1:
        shapes = [clip.shape for clip in clips]
        raise ValueError(f"columns of a panel need one number of frames and one height: {shapes}")
    if captions is not None:
        captioned = list(zip(clips, captions, strict=True))
        scale = min(_caption_scale(caption, clip.shape[2]) for clip, caption in captioned)
        clips = [_with_caption(clip, caption, scale) for clip, caption in captioned]
    separator = np.empty((*clips[0].shape[:2], SEPARATOR_WIDTH, 3), np.uint8)
    separator[:] = SEPARATOR_COLOUR
    parts = [part for clip in clips for part in (clip, separator)][:-1]
    panel = np.concatenate(parts, axis=2)
    return np.pad(panel, ((0, 0), (0, panel.shape[1] % 2), (0, panel.shape[2] % 2), (0, 0)))


def _caption_scale(caption: str, width: int) -> float:
    """The largest letters that a column of `width` pixels has room for; a panel takes its smallest."""
    (text_width, _), _ = cv2.getTextSize(caption, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    return min(0.94 * width / max(text_width, 1), 0.35 + width / 1024)


def _with_caption(clip: np.ndarray, caption: str, scale: float) -> np.ndarray:
    width = clip.shape[2]
    (text_width, _), _ = cv2.getTextSize(caption, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    height = 2 * round(20 * scale) + 4
    strip = np.full((height, width, 3), 24, np.uint8)
    origin = (round((width - scale * text_width) / 2), round(height - 0.36 * height))
    cv2.putText(strip, caption, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([np.broadcast_to(strip, (len(clip), *strip.shape)), clip], axis=1)


def _resize(picture: np.ndarray, size: Size) -> np.ndarray:
    """The picture at (height, width); averaged when it shrinks, hard-edged when it grows."""
    for axis, target in enumerate(size):  # by axis: a strip may grow one way and shrink the other
        length = picture.shape[axis]
        shape = (picture.shape[1], target) if axis == 0 else (target, picture.shape[0])
        interpolation = cv2.INTER_AREA if target < length else cv2.INTER_NEAREST
        picture = cv2.resize(np.ascontiguousarray(picture), shape, interpolation=interpolation)
    return picture


def gif_bytes(frames: np.ndarray, frame_rate: float) -> bytes:
    """An endlessly repeating GIF of frames uint8 [F, H, W, 3]; the format counts time in 1/100 s.

    Delays are rounded so that their sum stays right, and are at least 20 ms, below which browsers slow down.
    """
    ticks = np.round(100 * np.arange(len(frames) + 1) / frame_rate)
    durations = [int(10 * max(2, tick)) for tick in np.diff(ticks)]
    pictures = [Image.fromarray(frame) for frame in np.ascontiguousarray(frames)]
    pictures = [picture.quantize(256, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return buffer.getvalue()


def write_gif(path: str | Path, frames: np.ndarray, frame_rate: float) -> None:
    """Write `gif_bytes` to a file."""
    Path(path).write_bytes(gif_bytes(frames, frame_rate))
