"""What a visitor asks for, as the flags of sample_guidance.py."""

from dataclasses import dataclass, field
from pathlib import Path

from .examples import Example


@dataclass(frozen=True)
class Served:
    """The models that a page serves, and what their configurations say.

    refusals: {"video" or "song": why an upload of it cannot be danced to, where it cannot}.
    hears_videos: music features can be made of a video's sound.
    """

    model_path: Path
    music_to_pose_path: Path | None
    guidance_types: tuple[str, ...]
    frame_rate: float  # of the training videos, in which examples are counted
    frame_stride: int
    flags: dict[str, object]  # of every job: device, precision
    estimator: dict[str, object]  # flags of every driving video: which estimator finds its poses
    hears_videos: bool = True
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def takes_songs(self) -> bool:
        """Return whether a song alone is enough: a model makes the poses for it, or none are needed."""
        return self.music_to_pose_path is not None or self.guidance_types == ("music",)


@dataclass(frozen=True)
class Chosen:
    """A file to use: an upload, or that of an example whose tracks are there already."""

    path: Path
    example: Example | None = None

    def track(self, guidance_type: str) -> Path | None:
        return self.example and self.example.tracks.get(guidance_type)


@dataclass(frozen=True)
class Request:
    """One video to make. settings: {flag: value}, None and False where it is left as it is."""

    image: Chosen
    kind: str  # "video" or "song": what the person dances to
    dance: Chosen
    start_seconds: float = 0.0
    seconds: float = 4.0
    fits_body: bool = True
    is_smooth: bool = False
    is_heard: bool = True  # the sound of a driving video is guidance, too
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def needs_sound(self) -> bool:
        return self.is_heard and self.kind == "video" and self.dance.example is None


def flags_of(request: Request, served: Served, output: Path) -> list[str]:
    """Return the command line of sample_guidance.py, without its name."""
    values = {"model_path": served.model_path, "reference_image": request.image.path, "output": output}
    values |= {"panel": True} | request.settings | served.flags
    values |= _video_flags(request, served) if request.kind == "video" else _song_flags(request, served)
    words = []
    for name, value in values.items():
        if value is None or value is False or value in ("", []):
            continue
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value) if isinstance(value, list | tuple) else [str(value)]
    return words


def _video_flags(request: Request, served: Served) -> dict[str, object]:
    """Return {flag: value} of a driving video, or of an example's poses."""
    dance, values = request.dance, {"retarget": "auto" if request.fits_body else "none"}
    if "pose" in served.guidance_types:
        values["smooth_poses"] = request.is_smooth
        values["reference_pose"] = request.image.track("pose") if request.fits_body else None
    if dance.example is None:
        is_deaf = {"pose", "music"} <= set(served.guidance_types) and not request.is_heard
        values |= {"driving_video": dance.path, "guidance_types": "pose" if is_deaf else None}
        values |= served.estimator
        return values | {"start_seconds": request.start_seconds, "num_seconds": request.seconds}
    values |= {"poses": dance.track("pose"), "pose_size": dance.example.size[::-1]}
    return values | _example_flags(request, served, dance.example)


def _song_flags(request: Request, served: Served) -> dict[str, object]:
    """Return {flag: value} of a song, or of an example's music."""
    values, dance = {"music_to_pose_path": served.music_to_pose_path}, request.dance
    if served.music_to_pose_path is not None:
        values["reference_pose"] = request.image.track("pose")
    if dance.example is None:
        values |= {"start_seconds": request.start_seconds, "num_seconds": request.seconds}
        return values | {"song": dance.path}
    return values | _example_flags(request, served, dance.example)


def _example_flags(request: Request, served: Served, example: Example) -> dict[str, object]:
    """Return {flag: value} of an example's music and sound, and of how much of it."""
    start = min(request.start_seconds, max(0.0, example.seconds - 1))
    seconds = min(request.seconds, example.seconds - start)
    num_frames = max(1, int(seconds * served.frame_rate / served.frame_stride + 1e-6))
    values = {"music": example.tracks.get("music"), "audio": example.video}
    return values | {"start_frame": round(start * served.frame_rate), "num_frames": num_frames}
