"""The first training batch as the networks see it: what a look at the data before the run cannot show."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.panels import draw_guidance, frames_to_uint8, gif_bytes, make_panel
from training.run_log import RunLog

MAX_CLIPS = 4
DARKEST = 0.2  # of a frame's brightness, where the weight is 0
FRAME_RATE = 8.0  # a calm pace to look at; the clips may have different rates


def draw_batch(frozen, latents: Tensor, conditions: dict) -> np.ndarray:
    """Return rows [reference | guidance | frames], one per clip, uint8 [F, H_total, W_total, 3].

    Frames and reference are decoded from latents [B, F, 4, h, w] and conditions["reference_latents"]: blur
    here is the VAE's, and black bars or a cut-off head are what the model learns. Where the loss weighs
    regions, conditions["error_weights"] [B, F, 1, h, w], a last column shows the frames lit by their weight.
    """
    count = min(MAX_CLIPS, len(latents))
    frames = frozen.decode_frames(latents[:count])
    references = frozen.decode_frames(conditions["reference_latents"][:count, None])
    rows = []
    for place in range(count):
        guidance = {name: condition[place] for name, condition in conditions["guidance"].items()}
        size = tuple(frames.shape[-2:])
        columns = [
            frames_to_uint8(references[place])[0],
            *(draw_guidance(condition, size, name) for name, condition in guidance.items()),
            frames_to_uint8(frames[place]),
        ]
        titles = ["reference", *guidance, "frames"]
        if conditions.get("error_weights") is not None:
            columns.append(lit(columns[-1], conditions["error_weights"][place]))
            titles.append("loss weight")
        rows.append(make_panel(columns, titles if place == 0 else None))
    return np.concatenate(rows, axis=1)


def lit(frames: np.ndarray, error_weights: Tensor) -> np.ndarray:
    """Return frames uint8 [F, H, W, 3], each as bright as its weights [F, 1, h, w] are large."""
    weights = interpolate(error_weights.float().cpu(), frames.shape[1:3])[:, 0, :, :, None].numpy()
    return (frames * (DARKEST + (1 - DARKEST) * weights / max(1.0, weights.max()))).astype(np.uint8)


def show_first_batch(
    frozen, latents: Tensor, conditions: dict, sample_ids: Sequence[str], output_dir: Path, log: RunLog
) -> None:
    """Write samples/first_batch.gif (single frames: .png), and the same image to the log."""
    image = draw_batch(frozen, latents, conditions)
    gif = gif_bytes(image, FRAME_RATE)
    log.moving_image("train/first_batch", gif, image.shape[1:3], step=0)
    path = output_dir / "samples" / ("first_batch.png" if len(image) == 1 else "first_batch.gif")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(image) == 1:
            Image.fromarray(image[0]).save(path)
        else:
            path.write_bytes(gif)
    except OSError as error:  # a full disk, say: no reason to end a training
        log.say(f"warning: no image {path}: {error.strerror or error}")
        return
    log.say(f"first batch as the networks see it: {path} ({', '.join(sample_ids[:MAX_CLIPS])})")
