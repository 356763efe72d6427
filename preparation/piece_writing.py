"""One piece of a video to one sample: video, poses, music features, reference image, metadata."""

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import numpy as np

from datasets import DataError, VideoReader
from datasets.guidance.people import Detection, describe_frames, find_jumps, largest_person
from datasets.media.sound import read_audio
from preparation.music.features import compute_music_features, find_beats
from preparation.pose.estimators import NUM_POINTS, PoseEstimator

from .reference_image import Candidate, better, rate_frame
from .sample_folder import SampleFolder
from .settings import Settings
from .sources import SOUND_FIX
from .video_encoding import VideoEncoder, scale_frame, stream_time_base

SILENCE = 1e-4  # of full scale: sound that never gets louder holds no music
MARGIN_SECONDS = 2.0  # heard before and after a piece, so that its first and last rows have neighbours
DIGITS = 5  # of key points: a fiftieth of a pixel at 2000
MANY_FRAMES_SHARE = 0.1
VERSIONS_OF = ("numpy", "opencv-python-headless", "av", "librosa", "mediapipe", "onnxruntime")


@dataclass(frozen=True)
class Piece:
    """A range of a video's frames that becomes a sample."""

    name: str
    number: int
    num_pieces: int
    frames: range
    start_seconds: float  # the source's time at the sample's second 0
    frame_seconds: np.ndarray  # in the sample
    source_rate: float  # frames per second

    @property
    def frame_rate(self) -> float:
        if len(self.frame_seconds) < 2:
            return self.source_rate
        return float((len(self.frame_seconds) - 1) / (self.frame_seconds[-1] - self.frame_seconds[0]))

    @property
    def has_variable_rate(self) -> bool:
        even = self.frame_seconds[0] + np.arange(len(self.frame_seconds)) / self.frame_rate
        return bool(np.abs(self.frame_seconds - even).max() > 0.5 / self.frame_rate)

    @property
    def end_seconds(self) -> float:
        """In the sample: the last frame is shown for as long as the others."""
        return float(self.frame_seconds[-1] + 1 / self.frame_rate)


@dataclass(frozen=True)
class PieceInput:
    """What a piece is made of, besides its frames."""

    source: VideoReader
    size: tuple[int, int]  # of the sample's video
    sound_path: Path
    people: Sequence[Sequence[Detection]]  # in each of its frames
    estimator: PoseEstimator
    settings: Settings
    origin: dict  # for the metadata: which files


@dataclass(frozen=True)
class Music:
    """A piece's music, on the sample's own clock."""

    features: np.ndarray  # float32 [N, D]
    tempo: float  # beats per minute
    beat_seconds: list[float]
    notes: list[str]


def write_piece(
    piece: Piece, material: PieceInput, sample: SampleFolder, frames: Iterable, on_frame: Callable[[], None]
) -> tuple[str, list[str]]:
    """Write a sample aside and move it into place; return (a line about it, notes). Raises DataError.

    frames: uint8 [H, W, 3] each.
    """
    music, size = read_music(piece, material.sound_path, material.settings.music_features), material.size
    dancer, notes = choose_dancer(material.people, piece.frame_rate)
    with sample.written_aside() as partial:
        seen = zip(frames, dancer, strict=False)  # a frame short is a fault, named where they are counted
        reference, poses = _write_frames(piece, material, partial, seen, on_frame)
        np.save(partial.music_path, music.features)
        _write_reference(piece, material, partial, reference)
    jumps = find_jumps(poses, size, piece.frame_seconds)
    notes += [f"warning: the pose {what} in frames {describe_frames(where)}" for what, where in jumps.items()]
    notes = [note for note in (*notes, reference.describe(), *music.notes) if note]
    facts = describe_sample(piece, material, music, reference.frame)
    sample.publish({**material.origin, **facts, "notes": notes})
    people = "1 person" if facts["people"] == 1 else f"{facts['people']} people"
    line = (
        f"{piece.name}: {len(piece.frames)} frames {size[1]}x{size[0]}, {piece.end_seconds:.1f} s at "
        f"{piece.frame_rate:.4g} per second, {people}, {len(music.beat_seconds)} beats "
        f"({music.tempo:.0f} per minute), reference: frame {reference.frame}"
    )
    return line, notes


def describe_sample(piece: Piece, material: PieceInput, music: Music, reference_frame: int) -> dict:
    """Return a sample's metadata but for its source and notes. Beats are in seconds of its video."""
    settings = material.settings
    return {
        "start_seconds": piece.start_seconds,
        "piece": piece.number,
        "num_pieces": piece.num_pieces,
        "num_frames": len(piece.frames),
        "frame_rate": round(piece.frame_rate, 6),
        "variable_frame_rate": piece.has_variable_rate,
        "size": list(material.size),
        "reference_frame": reference_frame,
        "people": max(map(len, material.people), default=0),
        "music_features": {"name": settings.music_features, "channels": music.features.shape[1]},
        "tempo": round(music.tempo, 2),
        "beat_seconds": music.beat_seconds,
        "poses": {"name": settings.pose_estimator, "key_points": NUM_POINTS},
        "pose_estimator": material.estimator.description,
        "settings": settings.fingerprint(),
        "versions": _versions(),
    }


def choose_dancer(
    people: Sequence[Sequence[Detection]], frame_rate: float
) -> tuple[list[Detection | None], list[str]]:
    """Return (the largest person's detection in each frame, or None; notes)."""
    dancer, notes = largest_person(people, frame_rate), []
    num_seen, num_frames = sum(person is not None for person in dancer), len(dancer)
    crowded = sum(len(found) > 1 for found in people)
    if crowded:
        most = max(map(len, people))
        notes.append(f"up to {most} people in {crowded} of {num_frames} frames: the largest is tracked")
    if num_seen < (1 - MANY_FRAMES_SHARE) * num_frames:
        notes.append(f"the dancer is found in {num_seen} of {num_frames} frames only")
    return dancer, notes


def _write_frames(
    piece: Piece, material: PieceInput, partial: SampleFolder, frames: Iterable, on_frame: Callable[[], None]
) -> tuple[Candidate, np.ndarray]:
    """Write video and poses; return (best reference frame, poses). Raises DataError when nobody is seen."""
    estimator, size, best, poses, is_anybody_seen = material.estimator, material.size, None, [], False
    time_base = stream_time_base(material.source.path)
    estimator.start_piece()
    with VideoEncoder(partial.video_path, size, rate=piece.frame_rate, time_base=time_base) as encoder:
        encoder.add_sound(material.sound_path, piece.start_seconds, piece.end_seconds)
        for number, (frame, person) in enumerate(frames):
            points = np.asarray(estimator.key_points(frame, person), np.float32)
            poses.append(rounded_pose(points))
            if partial.pose_format == "json":
                write_pose(partial.pose_path / f"frame_{number:03d}.json", number, poses[-1])
            scaled = scale_frame(frame, size)
            encoder.write(scaled, piece.frame_seconds[number])
            best = better(rate_frame(number, scaled, points), best)
            is_anybody_seen = is_anybody_seen or bool(points.any())
            on_frame()
    if len(poses) < len(piece.frames):
        problem = f"only {len(poses)} of {len(piece.frames)} frames of {piece.name} can be decoded"
        raise DataError(material.source.path, problem, "re-encode the video")
    if not is_anybody_seen:
        where = f"from {piece.start_seconds:.1f} s to {piece.start_seconds + piece.end_seconds:.1f} s"
        fix = "use a video that shows a dancer"
        raise DataError(material.source.path, f"no person is found {where}", fix)
    if partial.pose_format == "npy":
        np.save(partial.pose_path, np.stack(poses))
    return best, np.stack(poses)


def rounded_pose(points: np.ndarray) -> np.ndarray:
    """Return key points [K, 3] as they are written, float32; what rounds to no confidence is absent."""
    rounded = points.astype(np.float64).round(DIGITS)
    rounded[rounded[:, 2] <= 0] = 0
    return rounded.astype(np.float32)


def write_pose(
    path: Path, frame_number: int, points: np.ndarray, size: tuple[int, int] | None = None
) -> None:
    """Write rounded key points [K, 3] in the documented form, with the frame's (height, width) if given."""
    pose = {"keypoints": points.astype(np.float64).round(DIGITS).tolist(), "pose_type": "dance",
            "frame_id": frame_number, "coordinates": "normalized"}  # fmt: skip
    pose |= {"height": size[0], "width": size[1]} if size else {}
    path.write_text(json.dumps(pose), encoding="utf-8")


def _write_reference(piece: Piece, material: PieceInput, partial: SampleFolder, reference: Candidate) -> None:
    """Write the source's frame, at the video's size but without its compression."""
    frame = material.source.read([piece.frames.start + reference.frame])[0]
    _, encoded = cv2.imencode(".png", scale_frame(frame, material.size)[..., ::-1])
    partial.reference_path.write_bytes(encoded.tobytes())  # imwrite gives no reason, and no Korean on Windows


def read_music(piece: Piece, sound_path: Path, recipe: str) -> Music:
    """Return the piece's features and beats. Raises DataError where there is no sound, or only silence."""
    before = min(MARGIN_SECONDS, max(0.0, piece.start_seconds))
    length = before + piece.end_seconds + MARGIN_SECONDS
    try:
        channels, rate = read_audio(sound_path, piece.start_seconds - before, length)
    except DataError as error:
        if not error.problem.startswith("has no sound at"):
            raise
        problem = f"its sound ends before {piece.name} begins, at {piece.start_seconds:.1f} s"
        raise DataError(sound_path, problem, SOUND_FIX) from error
    sound = channels.mean(axis=0)
    heard = len(sound) / rate - before  # seconds of the piece until the sound ends
    first, last = round(before * rate), round((before + piece.end_seconds) * rate)
    if heard <= 0 or np.abs(sound[first:last]).max(initial=0) < SILENCE:
        where = f"from {piece.start_seconds:.1f} s to {piece.start_seconds + piece.end_seconds:.1f} s"
        raise DataError(sound_path, f"its sound is silent {where}", SOUND_FIX)
    sound = np.pad(sound, (0, max(0, round(length * rate) - len(sound))))  # silence is what is heard then
    seconds = piece.frame_seconds + before
    features = compute_music_features(recipe, sound, rate, seconds)
    tempo, beats = find_beats(sound, rate)
    beats = beats - before
    inside = beats[(beats >= 0) & (beats < piece.end_seconds)]
    note = f"the sound ends at {heard:.2f} s of {piece.end_seconds:.2f} s"
    notes = [note] if heard < piece.end_seconds - 0.5 else []
    return Music(features, tempo, [round(float(beat), 4) for beat in inside], notes)


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS_OF:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
