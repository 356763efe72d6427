"""The check of one sample: its video, its reference image and each of its guidance tracks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.data_folder import DataFolder, Sample, read_metadata, type_dir
from datasets.feature_statistics import Moments, flat_rows
from datasets.guidance.track import Track
from datasets.media.pictures import read_picture
from datasets.media.video import FrameTable, VideoReader
from datasets.takes import (
    Timeline,
    check_music,
    check_seconds,
    check_size_known,
    read_timeline,
    reference_frames,
)
from datasets.transforms import Size
from datasets.unread import Unread
from system.errors import DataError

from .body_check import compare_bodies, describe_unlike, reference_points
from .data_report import Fault
from .looks import rows_base, track_look, video_look

MAX_FAULTS_PER_TRACK = 3  # single files named before the rest are counted
TINY_IMAGE = 32  # pixels of the shorter side, or a quarter of the resolution
GAP_SECONDS, GAP_FRAMES = 1.0, 8  # a gap in a video is longer than both
MAX_MOMENT_BYTES = 2**26  # of a track's rows that are held for the statistics
TOO_LONG = 1.1  # times the video's length, and a second more: a wrong rate, rather than a song's last bar


@dataclass(frozen=True)
class CheckSettings:
    """What a sample is checked against."""

    channels: dict[str, int]
    clip_span: int  # frames of the video from a clip's first to its last
    resolution: Size
    music_feature_fps: float | None = None
    decode_videos: bool = True  # False: first and last frames only


@dataclass
class SampleResult:
    """What the check of a sample found."""

    sample: Sample
    faults: list[Fault] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)  # in the folders of its tracks
    video_look: bytes = b""
    table: FrameTable | None = None  # of the video with this look
    moments: dict[str, tuple[bytes, Moments]] = field(default_factory=dict)  # {type: (track's look, its)}

    def without_arrays(self) -> SampleResult:
        return SampleResult(self.sample, self.faults, self.facts, self.unread)

    def add(self, path: Path, problem: str, fix: str, severity: str = "error") -> None:
        self.faults.append(Fault(self.sample.sample_id, str(path), problem, fix, severity))


def check_sample(folder: DataFolder, settings: CheckSettings, sample: Sample) -> SampleResult:
    """Return the faults and facts of a sample; what cannot be read does not stop the other checks."""
    check = _SampleCheck(folder, settings, sample)
    check.run()
    return check.result


def crashed_sample(sample: Sample) -> SampleResult:
    """Return the result for a sample whose check ended its process."""
    result = SampleResult(sample)
    problem = "the process that read this sample died: a damaged file, or too little memory"
    path, fix = Path(sample.sample_id), "make its files again"
    if sample.video_paths:
        path, fix = sample.video_paths[0], "re-encode the video"
    result.add(path, problem, f"{fix}; if others die too, lower --num_workers")
    return result


class _SampleCheck:
    def __init__(self, folder: DataFolder, settings: CheckSettings, sample: Sample) -> None:
        self.folder, self.settings, self.sample = folder, settings, sample
        faults = [Fault.of(error, sample.sample_id) for error in folder.sample_faults(sample)]
        self.result = SampleResult(sample, faults)
        self.facts, self.add = self.result.facts, self.result.add

    @contextlib.contextmanager
    def collect(self, path: Path) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            self.result.faults.append(Fault.of(error, self.sample.sample_id))
        except Exception as error:  # one odd file must not end the check of a thousand samples
            problem = f"cannot be read ({type(error).__name__}: {error})"
            self.add(path, " ".join(problem.split()), "restore or replace the file")

    def run(self) -> None:
        video = None
        if not self.folder.needs_videos:
            video = self.check_timeline()
        elif len(self.sample.video_paths) == 1:
            with self.collect(self.sample.video_paths[0]):
                video = self.check_video()
        if self.folder.needs_videos and len(self.sample.reference_paths) == 1:
            with self.collect(self.sample.reference_paths[0]):
                self.check_reference()
        for name, names in self.sample.guidance_names.items():
            if names:
                with self.collect(type_dir(self.folder.root, name)):
                    track = self.folder.track(self.sample, name, self.settings.music_feature_fps)
                    self.result.unread += track.unread
                    with self.collect(track.path):
                        self.check_track(track, video)
        if not self.folder.needs_videos:  # the timeline's fault
            return
        try:
            read_metadata(self.folder.root, self.sample.sample_id)
        except DataError as error:
            self.add(Path(error.path), error.problem, error.fix, "warning")

    # ---- a dance ----

    def check_timeline(self) -> Timeline | None:
        """Return when the frames of a dance are; None where that cannot be told."""
        found = {}
        for name, names in self.sample.guidance_names.items():
            with contextlib.suppress(DataError):  # the track's own check says it
                if names:
                    found[name] = self.folder.track(self.sample, name, self.settings.music_feature_fps)
        if len(found) < len(self.settings.channels):
            return None
        with self.collect(self.folder.root):
            timeline = read_timeline(self.folder, self.sample, found)
            self.facts |= {
                "frames": len(timeline), "seconds": round(float(timeline.frame_seconds[-1]), 3),
                "frame_rate": round(timeline.frame_rate, 3),
            }  # fmt: skip
            if timeline.size:
                self.facts["size"] = list(timeline.size)
            check_seconds(found["pose"], len(timeline), timeline.frame_rate)
            return timeline
        return None

    def check_dance(self, track: Track, rows: list, size: Size | None) -> None:
        """Raise DataError for rows that a dance cannot be made of."""
        facts = self.facts[track.type_name]
        if track.kind.on_person:
            check_size_known(track, facts["coordinates"], size)
            reference_frames(track, np.stack([track.kind.array_of(row) for row in rows]))
        else:
            check_music(track, facts["shape"])

    # ---- video and reference image ----

    def check_video(self) -> VideoReader:
        self.result.video_look = video_look(self.sample)
        video = VideoReader(self.sample.video_path())
        self.result.table = video.table
        self.facts |= {
            "frames": len(video), "seconds": round(float(video.frame_seconds[-1]), 3),
            "frame_rate": round(video.frame_rate, 3), "size": list(video.size), "has_audio": video.has_audio,
        }  # fmt: skip
        if video.notes:
            self.facts["shown"] = list(video.notes)
        self.check_shape(video)
        if len(video) < self.settings.clip_span:
            longest = f"(--sequence_length - 1) x --frame_stride to {len(video) - 1} or less"
            fix = f"use a longer video, or lower {longest}"
            self.add(video.path, f"{len(video)} frames, a clip needs {self.settings.clip_span}", fix)
        self.check_gaps(video)
        with self.collect(video.path):
            if self.settings.decode_videos:
                video.decode_all()
            else:
                video.read([0, len(video) - 1])
        return video

    def check_shape(self, video: VideoReader) -> None:
        """Add a fault where other programs, as OpenCV, see frames of another shape."""
        display = video.table.display
        if display.scaled != display.stored:
            size = f"{video.size[1]}x{video.size[0]}"
            problem = f"pixels are not square: players show it, and training reads it, as {size}"
            fix = f"prepare it with prepare_guidance.py, or see that maps and points in pixels are of {size}"
            self.add(video.path, problem, fix, "warning")

    def check_gaps(self, video: VideoReader) -> None:
        gaps = np.diff(video.frame_seconds)
        longest = int(gaps.argmax()) if len(gaps) else 0
        if len(gaps) and gaps[longest] > max(GAP_SECONDS, GAP_FRAMES * float(np.median(gaps))):
            start, end = video.frame_seconds[longest : longest + 2]
            problem = f"no frame between {start:.2f} s and {end:.2f} s (frames {longest} and {longest + 1})"
            fix = "cut the video and its guidance there, or record it again: a still image is no dance"
            self.add(video.path, problem, fix, "warning")

    def check_reference(self) -> None:
        path = self.sample.reference_path()
        image, notes = read_picture(path)
        height, width = image.shape[:2]
        self.facts["reference_size"] = [height, width]
        if notes:
            self.facts["reference_shown"] = notes
        side = min(self.settings.resolution)
        if min(height, width) < max(TINY_IMAGE, side / 4):
            problem = f"{width}x{height} pixels, tiny for a resolution of {side}"
            self.add(path, problem, "use a larger image", "warning")

    # ---- guidance ----

    def check_track(self, track: Track, video: VideoReader | Timeline | None) -> None:
        channels = self.settings.channels[track.type_name]
        facts = {"kind": track.kind.name, "rows": track.num_rows, "fps": track.fps}
        self.facts[track.type_name] = facts
        num_frames = None if video is None or track.fps is not None else len(video)
        track.kind.check_layout(track, channels, num_frames)
        if video is not None:
            with self.collect(track.path):
                track.rows_at(np.arange(len(video)), video.frame_seconds)
                self.check_length(track, video)
        base = rows_base(self.folder.root, track.type_name, channels)
        look = track_look(self.sample, track.type_name, base)
        rows, moments = self.read_rows(track)
        if rows is None:
            return
        if moments is not None:
            self.result.moments[track.type_name] = look, moments
        num_faults = len(self.result.faults)
        facts |= track.kind.check(track, rows, self.add, video.size if video else None)
        if not self.folder.needs_videos and video is not None:
            with self.collect(track.path):
                self.check_dance(track, rows, video.size)
        is_sound = all(fault.severity == "warning" for fault in self.result.faults[num_faults:])
        if is_sound and video is not None and (track.fps is not None or len(rows) == len(video)):
            seconds = video.frame_seconds if track.fps is None else np.arange(len(rows)) / track.fps
            facts |= track.kind.check_motion(track, rows, self.add, video.size or (1, 1), seconds)
            if track.kind.on_person and track.fps is None and "reference_size" in self.facts:
                self.check_body(track, rows, video.size)

    def check_body(self, track: Track, rows: list, size: Size) -> None:
        """Add a fault where the reference image, by its own key points, shows a body of another build."""
        with contextlib.suppress(DataError):  # of the metadata, whose own check says it
            metadata = read_metadata(self.folder.root, self.sample.sample_id)
            units = self.facts[track.type_name]["coordinates"]
            points = track.kind.values(track, range(len(rows)), rows, units, size)
            found = reference_points(metadata, points, size, tuple(self.facts["reference_size"]))
            shares = compare_bodies(points, size, *found) if found else {}
            self.facts |= {"reference_body": shares} if shares else {}
            if unlike := describe_unlike(shares):
                path = self.sample.reference_path()
                problem = f"shows another body than the one that dances: {unlike}, by the torso"
                self.add(path, problem, "use an image of the person who dances in the video", "warning")

    def check_length(self, track: Track, video: VideoReader | Timeline) -> None:
        """Add a fault for far too many rows, a sign of a wrong rate; too few are rows_at's error."""
        if track.fps is None:
            return
        seconds = track.num_rows / track.fps
        video_seconds = float(video.frame_seconds[-1]) + 1 / video.frame_rate
        if seconds > max(TOO_LONG * video_seconds, video_seconds + 1):
            problem = f"lasts {seconds:.2f} s ({track.num_rows} rows at {track.fps:g} per second), the video "
            fitting = track.fitting_rate(video.frame_seconds)
            fix = f"correct the rate ({fitting}), or cut off the rest" if fitting else "cut off the rest"
            self.add(track.path, f"{problem}{video_seconds:.2f} s", fix, "warning")

    def read_rows(self, track: Track) -> tuple[list | None, Moments | None]:
        """Return what a check needs of each row, None where rows are faulty, and what statistics need."""
        channels = self.settings.channels[track.type_name]
        read = track.kind.reader(track, channels)
        rows, errors, whole = [], [], _WholeRows(track)
        for number in range(track.num_rows):
            try:
                row = read(number)
                rows.append(track.kind.kept(row))
                whole.add(row)
            except DataError as error:
                errors.append(error)
        # Where every row is faulty, as with a wrong number of channels, the first one says it.
        num_shown = 1 if len(errors) == track.num_rows else MAX_FAULTS_PER_TRACK
        self.result.faults += [Fault.of(error, self.sample.sample_id) for error in errors[:num_shown]]
        if len(errors) > num_shown:
            more = f"{len(errors) - num_shown} more of its {track.num_rows} rows are faulty"
            self.add(track.path, more, "mend them likewise")
        return (None, None) if errors else (rows, whole.moments(channels))


class _WholeRows:
    """A track's rows, for the statistics; not of maps, which are as large as the frames."""

    def __init__(self, track: Track) -> None:
        self.track, self.rows, self.num_bytes = track, None if track.kind.in_frame else [], 0

    def add(self, row: object) -> None:
        if self.rows is not None:
            self.num_bytes += self.track.kind.array_of(row).nbytes
            self.rows.append(row)
            if self.num_bytes > MAX_MOMENT_BYTES:
                self.rows = None

    def moments(self, channels: int) -> Moments | None:
        """Return what statistics need of all rows, None where they are read for them again."""
        track, rows = self.track, self.rows
        if not rows:
            return None
        with contextlib.suppress(Exception):  # a user's kind may fail, as its reading for a clip will say
            if track.kind.units(track, lambda asked: [rows[number] for number in asked]) is None:
                values = track.kind.values(track, range(len(rows)), rows, None, None)
                return Moments.of(flat_rows(values, channels))
        return None
