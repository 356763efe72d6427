"""Side-by-side panels of frames and drawn guidance, for people to look at; kinds of tracks draw their own.

Nothing here feeds a model. Every drawing is uint8 RGB, [H, W, 3] for one frame and [F, H, W, 3] for a clip;
sizes are (height, width) in pixels.
"""

import io
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image

from datasets.guidance.drawing import as_numpy
from datasets.guidance.kind import KINDS, KINDS_OF_TYPES
from datasets.transforms import Size

SEPARATOR_WIDTH = 2
SEPARATOR_COLOUR = (70, 70, 70)


def draw_guidance(
    condition: np.ndarray | torch.Tensor, size: Size, guidance_type: str = "", frames: range | None = None
) -> np.ndarray:
    """Return a clip's condition [F, ...] drawn frame by frame by its kind, uint8 [F, H, W, 3].

    frames: those to draw; all of them without. guidance_type: where no kind is bound to it, the shape
    decides: key points [F, K, 3], maps [F, C, h, w] of up to 4 channels, or features.
    """
    condition = as_numpy(condition)
    is_map = condition.ndim == 4 and condition.shape[1] <= 4  # 3-D music has more channels
    by_shape = KINDS["key_points" if condition.ndim == 3 else "maps" if is_map else "features"]
    kind = KINDS_OF_TYPES.get(guidance_type, by_shape)
    frames = range(len(condition)) if frames is None else frames
    return np.stack([kind.draw(condition, frame, size) for frame in frames])


def frames_to_uint8(frames: torch.Tensor) -> np.ndarray:
    """Return frames [F, 3, H, W] in -1..1 as uint8 [F, H, W, 3]."""
    pixels = (frames.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def make_panel(columns: Sequence[np.ndarray], captions: Sequence[str] | None = None) -> np.ndarray:
    """Return columns side by side with thin separators, uint8 [F, H, W_total, 3]; sides even, as h264 wants.

    columns: uint8 [F, H, W, 3] each, or [H, W, 3] for a still image, which is repeated. Captions go above.
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
    separator = np.full((*clips[0].shape[:2], SEPARATOR_WIDTH, 3), SEPARATOR_COLOUR, np.uint8)
    parts = [part for clip in clips for part in (clip, separator)][:-1]
    panel = np.concatenate(parts, axis=2)
    return np.pad(panel, ((0, 0), (0, panel.shape[1] % 2), (0, panel.shape[2] % 2), (0, 0)))


def _caption_scale(caption: str, width: int) -> float:
    """Return the scale of the largest letters for a column of `width` pixels; a panel takes its smallest."""
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
    """Return an endlessly repeating GIF of frames uint8 [F, H, W, 3]; the format counts time in 1/100 s.

    Delays are rounded so that their sum stays right, and are at least 20 ms, below which browsers slow down.
    """
    ticks = np.round(100 * np.arange(len(frames) + 1) / frame_rate)
    durations = [int(10 * max(2, tick)) for tick in np.diff(ticks)]
    images = [Image.fromarray(frame) for frame in np.ascontiguousarray(frames)]
    images = [image.quantize(256, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()
