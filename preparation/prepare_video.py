"""One raw video to its samples: look through it once, choose pieces and dancer, then write piece by piece."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from datasets import DataError, VideoReader
from datasets.guidance.people import Detection
from preparation.pose.estimators import PoseEstimator
from system.file_names import windows_problem

from .piece_writing import Piece, PieceInput, write_piece
from .sample_folder import SampleFolder, is_finished, piece_name
from .scene_cuts import CutDetector, split_into_pieces
from .settings import Settings
from .sources import SOUND_FIX, Source, describe_file
from .video_encoding import output_size

SCAN_SHARE = 0.25  # of the work on a frame, for the progress bar


@dataclass
class VideoResult:
    """What became of one video."""

    file_name: str
    samples: list[str] = field(default_factory=list)  # one line each
    notes: list[str] = field(default_factory=list)
    faults: list[DataError] = field(default_factory=list)


def prepare_video(
    source: Source, settings: Settings, output_dir: Path, estimator: PoseEstimator,
    on_progress: Callable[[float], None] = lambda num_frames: None,
) -> VideoResult:  # fmt: skip
    """Write the samples of a video that are not finished yet; a piece's fault is in the result.

    on_progress is told how many frames' work is done since it was last called. Raises DataError for a fault
    of the whole video.
    """
    reader, result = VideoReader(source.path), VideoResult(source.path.name)
    sound_path, notes = choose_sound(source, reader)
    cuts, people = scan_video(reader, estimator, settings, on_progress)
    pieces, too_short = plan_pieces(source, reader, cuts, settings)
    result.notes += [*reader.notes, *notes, *too_short]
    if problem := windows_problem(source.name):
        result.notes.append(f"{problem}: rename the video where its data are to be used there")
    if not pieces:
        problem = f"no piece of it is as long as --min_seconds {settings.min_seconds:g}"
        raise DataError(source.path, problem, "lower --min_seconds, or take the video away")
    sound = None if sound_path == source.path else describe_file(sound_path)
    origin = {"source": describe_file(source.path), "sound": sound}
    size = output_size(reader.size, settings.resolution)
    on_frame = functools.partial(on_progress, 1 - SCAN_SHARE)
    frames = enumerate(reader.iterate())  # once, through all pieces
    for piece in pieces:
        first, length = piece.frames.start, len(piece.frames)
        of_piece = itertools.islice((frame for number, frame in frames if number >= first), length)
        seen = people[first : first + length]
        material = PieceInput(reader, size, sound_path, seen, estimator, settings, origin)
        try:
            if is_finished(source, settings, output_dir, piece.name):
                result.notes.append(f"{piece.name} is done already")
                continue
            sample = SampleFolder(output_dir, piece.name, settings.pose_format)
            line, notes = write_piece(piece, material, sample, of_piece, on_frame)
        except DataError as fault:
            result.faults.append(fault)
            continue
        result.samples.append(line)
        whose = f"{piece.name}: " if len(pieces) > 1 else ""
        result.notes += [whose + note for note in notes]
    return result


def choose_sound(source: Source, reader: VideoReader) -> tuple[Path, list[str]]:
    """Return (the file with the video's sound, notes). Raises DataError when there is none."""
    beside = source.sound_path
    if source.is_sound_forced:
        return beside, [f"sound is that of {beside.name} (--music_file)"] if reader.has_audio else []
    if reader.has_audio:
        note = f"has sound of its own, which is taken; {beside.name if beside else ''} is not used"
        return source.path, [note] if beside else []
    if beside is None:
        raise DataError(source.path, "has no sound", SOUND_FIX)
    return beside, [f"has no sound, {beside.name} is taken"]


def scan_video(
    reader: VideoReader, estimator: PoseEstimator, settings: Settings, on_progress: Callable[[float], None]
) -> tuple[list[int], list[list[Detection] | None]]:
    """Return (frames at which scenes begin, the people in every frame; None: not looked at)."""
    detector, people = CutDetector(), []
    for number, frame in enumerate(reader.iterate()):
        if settings.scene_cuts:
            detector.add(frame)
        is_looked_at = number % settings.pose_stride == 0
        people.append(estimator.find_people(frame) if is_looked_at else None)
        on_progress(SCAN_SHARE)
    return detector.cuts(), people


def plan_pieces(
    source: Source, reader: VideoReader, cuts: list[int], settings: Settings
) -> tuple[list[Piece], list[str]]:
    """Return (the pieces to become samples, one note per piece that is too short)."""
    seconds, rate = reader.frame_seconds, reader.frame_rate
    limits = {"max_seconds": settings.max_seconds, "min_seconds": settings.min_seconds}
    kept, too_short = split_into_pieces(seconds, rate, cuts, **limits)
    # A whole video keeps its own clock, also where its first frame comes late.
    is_whole = len(kept) == 1 and not too_short
    pieces = []
    for number, frames in enumerate(kept):
        start = min(0.0, float(seconds[0])) if is_whole else float(seconds[frames.start])
        own_seconds = seconds[frames.start : frames.stop] - start
        name = piece_name(source.name, number, len(kept))
        pieces.append(Piece(name, number, len(kept), frames, start, own_seconds, source_rate=rate))
    notes = [
        f"left out: {seconds[frames.start]:.2f} s to {seconds[frames[-1]] + 1 / rate:.2f} s, between scene "
        f"changes, shorter than --min_seconds {settings.min_seconds:g}"
        for frames in too_short
    ]
    return pieces, notes
