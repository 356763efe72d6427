"""What a job writes: where its videos go, the sound that belongs to them, a panel to look at."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from datasets.media.sound import read_audio
from pipelines.panels import draw_guidance, frames_to_uint8, make_panel
from preparation.song import first_frame_seconds
from system.errors import ConfigError


def output_paths(
    output: str, audio: str | None, *, has_panel: bool, may_replace: bool
) -> tuple[Path, Path | None]:
    """Return where the video and the panel go. Raises ConfigError where something is there already."""
    output = Path(output)
    if output.suffix.lower() != ".mp4":
        raise ConfigError(f"--output {output}: give a name that ends in .mp4")
    if audio is not None and output.resolve() == Path(audio).resolve():
        raise ConfigError(f"--output {output}: is the file of --audio too; choose another name")
    panel = output.with_name(f"{output.stem}_panel.mp4") if has_panel else None
    for path in filter(None, (output, panel)):
        if path.is_dir() or (path.exists() and not may_replace):
            raise ConfigError(f"--output: {path} exists; add --overwrite, or choose another name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: its folder cannot be made ({error.strerror})") from None
    return output, panel


@contextlib.contextmanager
def room_beside(output_path: Path) -> Iterator[Path]:
    """Yield a folder that is there in the block, for what is made on the way. Raises ConfigError."""
    try:
        with tempfile.TemporaryDirectory(dir=output_path.parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise ConfigError(f"--output {output_path}: cannot be written there ({error.strerror})") from None


def find_sound(
    path: str | None, duration_seconds: float, start_seconds: float = 0.0
) -> tuple[Path, float, float] | None:
    """Return (file, its second at which the clip begins, seconds of the clip). Raises DataError.

    start_seconds: from a video's first frame, or from the start of a file of sound alone.
    """
    if path is None:
        return None
    sound = Path(path), start_seconds + first_frame_seconds(path), duration_seconds
    read_audio(*sound)  # fail now, not after minutes
    return sound


def draw_panel(reference: torch.Tensor, guidance: dict[str, torch.Tensor], frames: np.ndarray) -> np.ndarray:
    """Return frames of reference, guidance and result side by side, uint8 [F, H, W, 3]."""
    drawings = [draw_guidance(condition, frames.shape[1:3], name) for name, condition in guidance.items()]
    columns = [frames_to_uint8(reference[None])[0], *drawings, frames]
    return make_panel(columns, ["reference", *guidance, "result"])
