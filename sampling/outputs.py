"""What a job writes: where its videos go, the sound that belongs to them, a panel to look at."""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from datasets.media.sound import read_audio
from datasets.media.tags import generated_tags
from datasets.transforms import Size
from pipelines.guidance_input import MapSource
from pipelines.panels import draw_guidance, frames_to_uint8, make_panel
from preparation.song import first_frame_seconds
from preparation.video_encoding import VideoEncoder
from system.errors import ConfigError, DataError
from system.whole_files import ASIDE, is_disk_full, whole_file

LEFT_SECONDS = 3600
SOFTWARE = "sample_guidance.py"  # in the tags of its videos


def output_paths(
    output: str, used: dict[str, str | None], *, has_panel: bool, may_replace: bool
) -> list[Path]:
    """Return where the video goes and, with a panel, that. Raises ConfigError where something is there.

    used: {flag: a file that is read}, which must not be written.
    """
    output = Path(output)
    if output.suffix.lower() != ".mp4":
        raise ConfigError(f"--output {output}: give a name that ends in .mp4")
    paths = [output, output.with_name(f"{output.stem}_panel.mp4")] if has_panel else [output]
    for flag, path in used.items():
        if path is not None and Path(path).resolve() in [one.resolve() for one in paths]:
            raise ConfigError(f"--output {output}: is the file of --{flag} too; choose another name")
    for path in paths:
        if path.is_dir() or (path.exists() and not may_replace):
            raise ConfigError(f"--output: {path} exists; add --overwrite, or choose another name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: its folder cannot be made ({error.strerror})") from None
    return paths


def tidy_beside(path: Path, tell: Callable[[str], object]) -> None:
    """Remove what killed runs have left of a file that they were writing; each is told.

    Nobody else's files have such names. Those younger than LEFT_SECONDS may be of a run that still writes.
    """
    name = re.compile(rf"\.?{re.escape(path.name[-40:])}\.\w{{8}}{re.escape(ASIDE)}")
    for left in path.parent.iterdir():
        if name.fullmatch(left.name) and time.time() - left.stat().st_mtime > LEFT_SECONDS:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
            tell(f"removed {left.name}, of an earlier run that was stopped while it wrote")


@contextlib.contextmanager
def guidance_room(saved: str | None, output: str) -> Iterator[Path]:
    """Yield the folder for guidance that is made: --save_guidance, else one that ends with the block.

    Raises DataError where it cannot be written to.
    """
    path = Path(output)
    if saved is not None:
        with refusals(Path(saved), "--save_guidance"):
            yield Path(saved)
        return
    where = {"prefix": f".{path.name[-40:]}.", "suffix": ASIDE, "dir": path.parent}
    with (
        refusals(path, "--output"),
        tempfile.TemporaryDirectory(**where, ignore_cleanup_errors=True) as folder,
    ):
        yield Path(folder)


def find_sound(
    path: str | None, start_seconds: float, duration_seconds: float
) -> tuple[Path, float, float] | None:
    """Return (file, its second at which the clip begins, seconds of the clip). Raises DataError.

    start_seconds: from a video's first frame, or from the start of a file of sound alone.
    """
    if path is None:
        return None
    sound = Path(path), start_seconds + first_frame_seconds(path), duration_seconds
    read_audio(*sound)  # fail now, not after minutes
    return sound


@contextlib.contextmanager
def refusals(path: Path, flag: str) -> Iterator[None]:
    """Raise DataError where the block cannot write what `flag` names: a full disk, missing rights."""
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        if is_disk_full(error):
            fix = "free some space and run the same command again"
            raise DataError(path.parent, "the disk is full", fix) from error
        fix = f"choose another {flag}, or allow writing there"
        raise DataError(path, f"cannot be written ({error.strerror or error})", fix) from error


class ClipEncoder(VideoEncoder):
    """Encodes as `write_video` does, with the threads and the key frames that players want."""

    options, num_threads = {}, 0


class ClipFile(contextlib.ExitStack):
    """Context that writes a clip part by part; it has its name when the block ends without an error.

    sound: (file, its second at which the clip begins, seconds of the clip), or nothing.
    """

    def __init__(self, path: Path, frame_rate: float, sound: tuple | None) -> None:
        super().__init__()
        self._path, self._sound, self._encoder, self._num_frames = path, sound, None, 0
        self._rate = Fraction(frame_rate).limit_denominator(1001)

    def write(self, frames: np.ndarray) -> None:
        """Write the next frames, uint8 [n, H, W, 3]; odd sizes are padded by repeating the last line."""
        odd = [side % 2 for side in frames.shape[1:3]]  # h264 halves the colour planes
        frames = np.pad(frames, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        if self._encoder is None:
            self._encoder = self._open(frames.shape[1:3])
        for frame in frames:
            self._encoder.write(frame, self._num_frames / self._rate)
            self._num_frames += 1

    def _open(self, size: Size) -> VideoEncoder:
        aside = self.enter_context(whole_file(self._path))
        rate, tags = self._rate, generated_tags(SOFTWARE)
        encoder = ClipEncoder(aside, size, rate=float(rate), time_base=1 / rate, tags=tags)
        self.enter_context(encoder)
        if self._sound is not None:
            encoder.add_sound(*self._sound)
        return encoder


def draw_panel(
    reference: torch.Tensor, guidance: dict[str, torch.Tensor | MapSource], frames: np.ndarray, first: int
) -> np.ndarray:
    """Return frames of reference, guidance and result side by side, uint8 [n, H, W, 3].

    frames: those from the clip's frame `first` on.
    """
    numbers, size = range(first, first + len(frames)), frames.shape[1:3]
    drawings = [
        draw_guidance(condition[numbers.start : numbers.stop], size, name)
        if isinstance(condition, MapSource)
        else draw_guidance(condition, size, name, numbers)
        for name, condition in guidance.items()
    ]
    columns = [frames_to_uint8(reference[None])[0], *drawings, frames]
    return make_panel(columns, ["reference", *guidance, "result"])
