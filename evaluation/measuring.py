"""One clip to numbers: {metric: value} and {metric: curve over its frames}.

The frames are read once, in chunks, for all metrics of pixels; a pose estimator reads the prediction once
more. What a metric needs and does not get is told by name, and the others are measured.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from system.errors import UserError

from .catalogue import METRICS, NEEDS
from .clips.pairs import Chunk, ClipPair
from .clips.sources import FrameSource
from .metrics import distributions, identity, music, perceptual, pixels, pose, temporal

EMBEDDED_FRAMES = 16  # of a clip, drawn evenly
WINDOW_FRAMES, MOST_WINDOWS = 16, 4  # of a clip that a video network sees

OF_IMAGES = {"image_encoder": ("cmmd", "drift"), "inception": ("fid",)}  # {network: what takes its features}
OF_WINDOWS = {"video_encoder": ("video_mmd",), "i3d": ("fvd",), "resnet3d": ("fid_vid",)}
OF_BEATS = ("beat_alignment_gain", "beat_shifts_beaten", "beat_coverage")
OF_RUNS = ("cmmd", "fid", "fvd", "fid_vid", "video_mmd", "guidance_gap")  # of all clips together

Estimate = Callable[[FrameSource, float], np.ndarray]  # (frames, frames per second) -> [F, 134, 3] in 0..1


@dataclass
class Tools:
    """What metrics may need beside a clip.

    networks: {need: network}, by the names of catalogue.NEEDS; lacks: {need: why it is not here}, where there
    is more to say than what to give; listen: (media file, start, length in seconds) to the beats there.
    """

    pose_estimator: Estimate | None = None
    networks: dict[str, object] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)
    listen: Callable[[Path, float, float], np.ndarray] | None = None


@dataclass
class Measured:
    """What was found of a prediction. points: the estimator's, in pixels [F, K, 3]; beats: in seconds [B].

    features: {"NETWORK/prediction" | "NETWORK/truth": [n, D]}; missing: {metric: why it has no value}.
    """

    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    points: np.ndarray | None = None
    beats: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def attempt(self, names: str | Collection[str], work: Callable):
        """Return what the work of one metric or several gives; None where it lacks something, as noted."""
        names = (names,) if isinstance(names, str) else names
        names = [name for name in names if name not in self.missing]
        if names:
            try:
                return work()
            except ValueError as error:  # a UserError, or frames that are too small
                self.missing |= dict.fromkeys(names, str(error))
        return None


def measure(
    pair: ClipPair,
    tools: Tools,
    wanted: Collection[str],
    on_frames: Callable[[int], None] = lambda count: None,
    known: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Measured:
    """Return what `wanted` metrics say of a clip. on_frames is told how many frames are read.

    known: features that another measurement found of the same frames, and that are not computed again. Raises
    DataError where one of the two videos cannot be decoded.
    """
    measured = Measured(missing=lacking(pair, tools, wanted), features=dict(known))
    measure_frames(measured, pair, tools, wanted, on_frames)
    if any(name not in measured.missing for name in judged(wanted)):
        seen = counted(pair.prediction, on_frames)
        measured.points = np.array(tools.pose_estimator(seen, pair.frame_rate), np.float64)
        measured.points[..., :2] *= pair.size[::-1]
        measure_pose(measured, pair.clip.key_points, wanted)
    measure_beats(measured, pair, tools, wanted)
    measure_time(measured, pair, wanted)
    for name in (name for name in wanted if name not in OF_RUNS):
        curve = measured.curves.get(name, np.zeros(0))
        if name not in measured.values and not np.isnan(curve).all():
            measured.values[name] = float(np.nanmean(curve))
        if name not in measured.values:
            measured.missing.setdefault(name, METRICS[name].nothing)
    return measured


def judged(wanted: Collection[str]) -> list[str]:
    """Return those of the metrics that need a pose estimator."""
    return [name for name in wanted if "pose_estimator" in METRICS[name].needs]


def count_passes(tools: Tools, wanted: Collection[str]) -> int:
    """Return how often `measure` reads a prediction: an estimator does it twice."""
    return 3 if tools.pose_estimator is not None and judged(wanted) else 1


def counted(source: FrameSource, on_frames: Callable[[int], None]) -> FrameSource:
    """Return the source, which tells of each frame that is read."""

    def frames() -> Iterator[np.ndarray]:
        for frame in source():
            yield frame
            on_frames(1)

    return frames


def lacking(pair: ClipPair, tools: Tools, wanted: Collection[str]) -> dict[str, str]:
    """Return {metric: why it cannot be measured}, of those that lack something."""
    lacks = {need: f"needs {text}" for need, text in NEEDS.items()} | tools.lacks
    of_clip = {"key_points": "pose", "reference_image": "reference_image"}
    lacks |= {need: pair.clip.lacks[name] for need, name in of_clip.items() if name in pair.clip.lacks}
    there = {
        "key_points": "pose" in pair.clip.guidance,
        "pose_estimator": tools.pose_estimator is not None,
        "borders": pair.borders is not None,
        "reference_image": pair.clip.reference is not None,
    } | dict.fromkeys(tools.networks, True)
    found = {}
    for name in wanted:
        missing = [need for need in METRICS[name].needs if not there.get(need, False)]
        if missing:
            found[name] = lacks[missing[0]]
    return found


# ---- one pass over the frames ----


def measure_frames(
    measured: Measured,
    pair: ClipPair,
    tools: Tools,
    wanted: Collection[str],
    on_frames: Callable[[int], None],
) -> None:
    """Find the curves of pixels, and the features of images and windows."""
    curves: dict[str, list[np.ndarray]] = {}
    pickers = pickers_of(pair.num_frames, tools, wanted, measured.features)
    for chunk in pair.chunks():
        works = works_of(chunk, pair, tools)
        for name in (*wanted, "frame_jumps"):
            part = measured.attempt(name, works[name]) if name in works else None
            if part is not None:
                curves.setdefault(name, []).append(part)
        for picker in pickers:
            picker.add(chunk)
        on_frames(len(chunk.prediction) - chunk.num_old)
    whole = (name for name in curves if name not in measured.missing)  # no part of what failed later
    measured.curves |= {name: np.concatenate(curves[name]) for name in whole}
    for picker in pickers:
        measured.features |= picker.features()


def works_of(chunk: Chunk, pair: ClipPair, tools: Tools) -> dict[str, Callable[[], np.ndarray]]:
    """Return {metric: what finds its values} for a chunk: of the new frames, or of neighbouring ones."""
    new = slice(chunk.num_old, None)
    both = prediction, truth = chunk.prediction[new], chunk.truth[new]
    points = None if chunk.key_points is None else chunk.key_points[new]
    works = {
        "psnr": lambda: pixels.psnr(*both),
        "ssim": lambda: pixels.ssim(*both),
        "l1": lambda: pixels.l1(*both),
        "psnr_legacy": lambda: pixels.psnr_legacy(*both),
        "ssim_legacy": lambda: pixels.ssim_legacy(*both),
        "l1_legacy": lambda: pixels.l1_legacy(*both),
        "hand_psnr": lambda: pixels.hand_psnr(*both, points),
        "face_psnr": lambda: pixels.face_psnr(*both, points),
        "lpips": lambda: perceptual.lpips(*both, tools.networks["lpips"]),
        "lpips_legacy": lambda: perceptual.lpips(*both, tools.networks["lpips"], legacy=True),
        "face_similarity": lambda: identity.face_similarity(
            prediction, pair.clip.reference, tools.networks["face"]
        ),
    }
    if len(chunk.prediction) > 1:
        works |= {
            "frame_jumps": lambda: temporal.frame_jumps(chunk.prediction),
            "dtssd": lambda: temporal.dtssd(chunk.prediction, chunk.truth),
            "background_flicker": lambda: temporal.background_flicker(chunk.prediction, chunk.key_points),
        }
    return works


class FramePicker:
    """Embeds some frames of a clip's videos, drawn evenly. keys: features to find, "NETWORK/SIDE"."""

    def __init__(self, keys: Collection[str], network, num_frames: int) -> None:
        self.network, self.chosen = network, embedded_frames(num_frames)
        self.found = {key: [] for key in keys}

    def add(self, chunk: Chunk) -> None:
        places = self.chosen - chunk.first
        num_new = len(chunk.prediction) - chunk.num_old
        places = places[(places >= 0) & (places < num_new)] + chunk.num_old
        if len(places):
            for key, rows in self.found.items():
                rows.append(self.network(frames_of(chunk, key)[places]))

    def features(self) -> dict[str, np.ndarray]:
        return {key: np.concatenate(rows) for key, rows in self.found.items() if rows}


class WindowPicker(FramePicker):
    """Embeds some windows of neighbouring frames of a clip's videos, drawn evenly."""

    def __init__(self, keys: Collection[str], network, num_frames: int) -> None:
        super().__init__(keys, network, num_frames)
        self.starts = window_starts(num_frames)
        self.open = {key: [] for key in keys}

    def add(self, chunk: Chunk) -> None:
        for key, rows in self.found.items():
            windows = self.open[key]
            for number, frame in enumerate(frames_of(chunk, key)[chunk.num_old :], start=chunk.first):
                if number in self.starts:
                    windows.append([])
                for window in windows:
                    window.append(frame)
                if windows and len(windows[0]) == WINDOW_FRAMES:
                    rows.append(self.network(np.stack(windows.pop(0))[None]))


def frames_of(chunk: Chunk, key: str) -> np.ndarray:
    """Return a chunk's frames of the side that features "NETWORK/SIDE" are of."""
    return getattr(chunk, key.partition("/")[2])


def pickers_of(
    num_frames: int, tools: Tools, wanted: Collection[str], known: Collection[str]
) -> list[FramePicker]:
    """Return what embeds a clip for the metrics that take features; those that are known are left out."""
    kinds = {name: (FramePicker, metrics) for name, metrics in OF_IMAGES.items()}
    kinds |= {name: (WindowPicker, metrics) for name, metrics in OF_WINDOWS.items()}
    pickers = []
    for name, (picker, metrics) in kinds.items():
        if name in tools.networks and any(metric in wanted for metric in metrics):
            keys = [key for key in (f"{name}/prediction", f"{name}/truth") if key not in known]
            pickers.append(picker(keys, tools.networks[name], num_frames))
    return pickers


def embedded_frames(num_frames: int) -> np.ndarray:
    """Return the frames of a clip that image networks see, int64, ascending."""
    return np.unique(np.linspace(0, num_frames - 1, min(num_frames, EMBEDDED_FRAMES)).round().astype(int))


def window_starts(num_frames: int) -> list[int]:
    """Return where the windows of a clip begin that video networks see."""
    count = min(MOST_WINDOWS, num_frames // WINDOW_FRAMES)
    return np.linspace(0, num_frames - WINDOW_FRAMES, count).round().astype(int).tolist()


# ---- pose, music, time ----


def measure_pose(measured: Measured, driving: np.ndarray | None, wanted: Collection[str]) -> None:
    """Hold the estimator's points against driving ones."""

    def hold(name: str, work: Callable) -> None:
        measured.curves[name] = work(*pose.common_points(measured.points, driving))

    for name, work in (("pck", pose.pck), ("akd", pose.akd), ("oks", pose.oks)):
        if name in wanted and driving is not None:
            measured.attempt(name, lambda name=name, work=work: hold(name, work))


def measure_beats(measured: Measured, pair: ClipPair, tools: Tools, wanted: Collection[str]) -> None:
    """Hold the stops of the estimator's points against the music's beats."""
    duration = pair.num_frames / pair.frame_rate

    def find_beats() -> None:
        measured.beats = beats_of(pair, tools)

    def hold_stops() -> None:
        stops = music.motion_beats(measured.points, pair.frame_rate)
        gain = music.beat_alignment_gain(stops, measured.beats, duration)
        coverage = music.beat_coverage(stops, measured.beats, duration)
        found = zip(OF_BEATS, (gain.gain, gain.share_beaten, coverage), strict=True)
        measured.values |= {name: value for name, value in found if name in names}

    names = [name for name in OF_BEATS if name in wanted]
    measured.attempt(names, find_beats)
    measured.attempt(names, hold_stops)


def beats_of(pair: ClipPair, tools: Tools) -> np.ndarray:
    """Return the music's beats, in seconds of a clip's first frame. Raises UserError where nothing tells."""
    clip, duration = pair.clip, pair.num_frames / pair.frame_rate
    start = float(clip.seconds[0])
    features, seconds = clip.music or (None, None)
    has_sound = tools.listen is not None and clip.video.has_audio
    listen = (lambda: tools.listen(clip.video.path, start, duration)) if has_sound else None
    try:
        beats = music.music_beats(features, seconds, metadata=clip.metadata, listen=listen) - start
    except UserError as error:
        raise clip.fault("music", str(error)) from error
    return beats[(beats >= 0) & (beats < duration)]


def measure_time(measured: Measured, pair: ClipPair, wanted: Collection[str]) -> None:
    """Find seams and drift, from what the frames gave."""
    jumps = measured.curves.get("frame_jumps")
    embeddings = measured.features.get("image_encoder/prediction")

    def find_seams() -> None:
        ratio, count = temporal.seam_ratio(jumps, list(pair.borders))
        if count:
            measured.values["seam_ratio"] = float(ratio)

    def find_drift() -> None:
        seconds = pair.seconds[embedded_frames(pair.num_frames)]
        fall = distributions.drift(embeddings, seconds).fall
        if not np.isnan(fall):
            measured.values["drift"] = fall

    if "seam_ratio" in wanted and jumps is not None:
        measured.attempt("seam_ratio", find_seams)
    if "drift" in wanted and embeddings is not None:
        measured.attempt("drift", find_drift)
