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

from datasets.guidance.drawing import as_numpy, draw_map, draw_pose, rainbow, resize_picture

Size = tuple[int, int]

SEPARATOR_WIDTH = 2
SEPARATOR_COLOUR = (70, 70, 70)


def draw_music(features: np.ndarray | torch.Tensor, frame: int, size: Size) -> np.ndarray:
    """Music around the current frame, uint8 [H, W, 3]: its values as bars, all frames as a heat strip.

    features: float [F, D] or [F, D, H, W] (drawn as its spatial mean). Each feature is scaled to its own
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
    strip = resize_picture(strip, (height - bars_height, width))
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
        picture[top:, left:right] = rainbow(0.8 * index / num_bars)
    return picture


def draw_guidance(condition: np.ndarray | torch.Tensor, size: Size) -> np.ndarray:
    """One guidance type of a clip, drawn frame by frame: uint8 [F, H, W, 3].

    condition: key points [F, K, 3], vectors [F, D], or maps [F, C, h, w]; maps of more than 4 channels are
    features (3-D music), not pictures, and are drawn as music is.
    """
    condition = as_numpy(condition)
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
