"""What a visitor asks for, as the flags of sample_guidance.py; and how far the work is, in words."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from .examples import Example
from .words import duration, say

FIRST_ESTIMATE_SECONDS = 2.0  # before, the time left is a guess


@dataclass(frozen=True)
class Dance:
    """What the person dances to: an upload, or an example whose tracks are there already."""

    kind: str  # "video" or "song"
    upload: Path | None = None
    example: Example | None = None


@dataclass(frozen=True)
class Request:
    """One video to make. settings: {flag: value}, None and False where it is left as it is."""

    image: Path
    dance: Dance
    image_example: Example | None = None
    start_seconds: float = 0.0
    seconds: float = 4.0
    settings: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Served:
    """The models that a page serves, and what their configurations say.

    refusals: {"video" or "song": why an upload of it cannot be danced to, where it cannot}.
    """

    model_path: Path
    music_to_pose_path: Path | None
    guidance_types: tuple[str, ...]
    frame_rate: float  # of the training videos, in which examples are counted
    frame_stride: int
    flags: dict[str, object]  # of every job: device, precision
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def takes_songs(self) -> bool:
        """Return whether a song alone is enough: a model makes the poses for it, or none are needed."""
        return self.music_to_pose_path is not None or self.guidance_types == ("music",)


def flags_of(request: Request, served: Served, output: Path) -> list[str]:
    """Return the command line of sample_guidance.py, without its name."""
    values = {"model_path": served.model_path, "reference_image": request.image, "output": output}
    values |= {"panel": True} | dance_flags(request, served) | request.settings | served.flags
    words = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if isinstance(value, list | tuple):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return words


def dance_flags(request: Request, served: Served) -> dict[str, object]:
    """Return {flag: value} of what is danced to, and of how much of it."""
    dance, example, values = request.dance, request.dance.example, {}
    dances_by_model = dance.kind == "song" and served.music_to_pose_path is not None
    if dances_by_model:
        values["music_to_pose_path"] = served.music_to_pose_path
        values["reference_pose"] = request.image_example and request.image_example.tracks.get("pose")
    if example is None:
        flag = "driving_video" if dance.kind == "video" else "song"
        return values | {
            flag: dance.upload, "start_seconds": request.start_seconds, "num_seconds": request.seconds
        }  # fmt: skip
    if not dances_by_model:
        values["poses"] = example.tracks.get("pose")
        values["pose_size"] = example.size[::-1] if "pose" in example.tracks else None
    values |= {"music": example.tracks.get("music"), "audio": example.video}
    start = min(request.start_seconds, max(0.0, example.seconds - 1))
    seconds = min(request.seconds, example.seconds - start)
    frames = max(1, int(seconds * served.frame_rate / served.frame_stride + 1e-6))
    return values | {"start_frame": round(start * served.frame_rate), "num_frames": frames}


class Remaining:
    """How far a job is, in words with the time left; each part of it is measured by itself."""

    def __init__(self, language: str, clock=time.monotonic) -> None:
        self._language, self._clock = language, clock
        self._part, self._since, self._done = None, 0.0, 0

    def words(self, text: str, done: int, total: int) -> str:
        """Return "sampling: 3 of 25, about 40 s left"."""
        now = self._clock()
        if text != self._part:
            self._part, self._since, self._done = text, now, done
        if total <= 1:
            return text
        words = say(self._language, "step", text=text, done=done, total=total)
        passed, more = now - self._since, done - self._done
        if more <= 0 or passed < FIRST_ESTIMATE_SECONDS or done >= total:
            return words
        left = duration(self._language, passed / more * (total - done))
        return f"{words}, {say(self._language, 'left', time=left)}"
