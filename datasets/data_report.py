"""The check of a data folder: every fault of every sample, one line each, and a JSON report.

An error is what reading would stop at, or what leaves nothing to learn from; a warning is read as it stands.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .data_folder import DataFolder, Sample, list_data_folder
from .errors import DataError
from .guidance_readers import (
    Track,
    check_map_size,
    is_map,
    row_reader,
)
from .key_points import decide_units, normalize_key_points
from .transforms import Size, as_size, read_image
from .video import VideoReader

MAX_FAULTS_PER_TRACK = 3  # single files named before the rest are counted
OUTSIDE_TOLERANCE = 0.05  # of the frame: trackers place a hand a little outside
TINY_IMAGE = 32  # pixels of the shorter side, or a quarter of the resolution


@dataclass(frozen=True)
class Fault:
    """One fault: the file, what is wrong, what to do."""

    sample_id: str  # "" for a fault of the whole folder
    path: str
    problem: str
    fix: str
    severity: str = "error"  # or "warning"

    def __str__(self) -> str:
        return str(DataError(self.path, self.problem, self.fix))


@dataclass
class DataReport:
    """What a check found. samples: {sample id: facts such as frames, rows and coordinates}."""

    data_root: str
    faults: list[Fault] = field(default_factory=list)
    samples: dict[str, dict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[Fault]:
        return [fault for fault in self.faults if fault.severity == "error"]

    @property
    def ok(self) -> bool:
        """No fault of any kind."""
        return not self.faults

    def summary(self) -> str:
        """A line a fault, then what was read and how."""
        lines = [f"{fault.severity}: {fault}" for fault in self.faults] + [
            f"note: {note}" for note in self.notes
        ]
        faulty = len({fault.sample_id for fault in self.faults} - {""})
        count = f"{len(self.faults)} fault{'s' * (len(self.faults) != 1)}" if self.faults else "no faults"
        where = f" in {faulty} of them" if faulty else ""
        lines.append(f"{self.data_root}: {len(self.samples)} samples checked, {count}{where}")
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Writes the report as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "data_root": self.data_root, "ok": self.ok, "num_samples": len(self.samples),
            "num_errors": len(self.errors), "num_warnings": len(self.faults) - len(self.errors),
            "faults": [asdict(fault) for fault in self.faults], "notes": self.notes, "samples": self.samples,
        }  # fmt: skip
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_data(
    data_root: str | Path,
    guidance_types: Sequence[str],
    guidance_input_channels: Sequence[int],
    *,
    resolution: int | Size = 512,
    sequence_length: int = 16,
    frame_stride: int = 1,
    music_feature_fps: float | None = None,
    data_format: str = "video",
    validation_data_dir: str | Path | None = None,  # only compared: a video must not be in both
    decode_videos: bool = True,  # False: first and last frames only
    num_threads: int | None = None,
) -> DataReport:
    """Every fault of a data folder. Reads all of its files; raises nothing for what is wrong with them."""
    channels = dict(zip(guidance_types, guidance_input_channels, strict=True))
    try:
        folder = list_data_folder(data_root, guidance_types)
    except DataError as error:
        return DataReport(str(data_root), [_fault("", error)])
    length = 1 if data_format == "image" else sequence_length
    report = check_folder(
        folder, channels, clip_span=1 + (length - 1) * frame_stride, resolution=as_size(resolution),
        music_feature_fps=music_feature_fps, decode_videos=decode_videos, num_threads=num_threads,
    )  # fmt: skip
    report.faults[:0] = [_fault("", error) for error in folder.faults]
    report.notes += [f"{path} belongs to no video" for path in folder.strays]
    if validation_data_dir is not None:
        report.faults += _shared_videos(folder, validation_data_dir)
    return report


def check_folder(
    folder: DataFolder,
    channels: dict[str, int],
    *,
    clip_span: int,
    resolution: Size,
    music_feature_fps: float | None = None,
    decode_videos: bool = True,
    num_threads: int | None = None,
) -> DataReport:
    """The faults of a listed folder's samples, several samples at a time."""

    def check(sample: Sample) -> _SampleCheck:
        result = _SampleCheck(folder, sample)
        result.check(channels, clip_span, resolution, music_feature_fps, decode_videos)
        return result

    with ThreadPoolExecutor(num_threads or min(8, os.cpu_count() or 1)) as pool:
        checks = list(pool.map(check, folder.samples))
    report = DataReport(str(folder.root))
    for result in checks:
        report.samples[result.sample.sample_id] = result.facts
        report.faults += result.faults
    report.faults += _unlike_shapes(checks, folder, channels)
    for name in channels:
        units = Counter(facts["coordinates"] for facts in _facts_of(checks, name) if "coordinates" in facts)
        for kind, count in sorted(units.items()):
            report.notes.append(f"{name}: coordinates taken as {kind} in {count} of {len(checks)} samples")
    return report


def _fault(sample_id: str, error: DataError, severity: str = "error") -> Fault:
    return Fault(sample_id, error.path, error.problem, error.fix, severity)


def _facts_of(checks: list[_SampleCheck], name: str) -> Iterator[dict]:
    return (check.facts[name] for check in checks if name in check.facts)


class _SampleCheck:
    """Collects the faults and facts of one sample; what cannot be read does not stop the other checks."""

    def __init__(self, folder: DataFolder, sample: Sample) -> None:
        self.folder, self.sample = folder, sample
        self.faults = [_fault(sample.sample_id, error) for error in folder.sample_faults(sample)]
        self.facts: dict[str, object] = {}

    def add(self, path: Path, problem: str, fix: str, severity: str = "error") -> None:
        self.faults.append(Fault(self.sample.sample_id, str(path), problem, fix, severity))

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            self.faults.append(_fault(self.sample.sample_id, error))

    def check(
        self, channels, clip_span: int, resolution: Size, music_feature_fps, decode_videos: bool
    ) -> None:
        video = None
        if len(self.sample.video_paths) == 1:
            with self.collect():
                video = self.check_video(clip_span, decode_videos)
        if len(self.sample.reference_paths) == 1:
            with self.collect():
                self.check_reference(resolution)
        for name, names in self.sample.guidance_names.items():
            if names:
                with self.collect():
                    track = self.folder.track(self.sample, name, music_feature_fps)
                    self.check_track(track, channels[name], video)

    def check_video(self, clip_span: int, decode: bool) -> VideoReader:
        video = VideoReader(self.sample.video_path())
        self.facts |= {
            "frames": len(video), "seconds": round(float(video.frame_seconds[-1]), 3),
            "frame_rate": round(video.frame_rate, 3), "size": list(video.size), "has_audio": video.has_audio,
        }  # fmt: skip
        if len(video) < clip_span:
            fix = "use a longer video, or smaller --sequence_length or --frame_stride"
            self.add(video.path, f"{len(video)} frames, a clip needs {clip_span}", fix)
        with self.collect():
            if decode:
                for _ in video.iterate():
                    pass
            else:
                video.read([0, len(video) - 1])
        return video

    def check_reference(self, resolution: Size) -> None:
        path = self.sample.reference_path(self.folder.root)
        height, width = read_image(path).shape[:2]
        if min(height, width) < max(TINY_IMAGE, min(resolution) / 4):
            problem = f"{width}x{height} pixels, tiny for a resolution of {min(resolution)}"
            self.add(path, problem, "use a larger picture", "warning")

    def check_track(self, track: Track, channels: int, video: VideoReader | None) -> None:
        facts = {"kind": track.kind, "rows": track.num_rows, "fps": track.fps}
        self.facts[track.type_name] = facts
        if video is not None:
            with self.collect():
                track.rows_at(np.arange(len(video)), video.frame_seconds)
        read = row_reader(track, channels)
        rows, errors = [], []
        for row in range(track.num_rows):
            try:
                rows.append(_kept(track, read(row)))
            except DataError as error:
                errors.append(error)
        # Where every row is faulty, as with a wrong number of channels, the first one says it.
        num_shown = 1 if len(errors) == track.num_rows else MAX_FAULTS_PER_TRACK
        self.faults += [_fault(self.sample.sample_id, error) for error in errors[:num_shown]]
        if len(errors) > num_shown:
            more = f"{len(errors) - num_shown} more of its {track.num_rows} rows are faulty"
            self.add(track.path, more, "mend them likewise")
        if errors:
            return
        if track.kind == "key_points":
            self.check_key_points(track, rows, facts, video)
        else:
            self.check_arrays(track, rows, facts, video)

    def check_key_points(self, track: Track, rows: list, facts: dict, video: VideoReader | None) -> None:
        points = np.stack([row for row, _ in rows])
        facts["coordinates"] = units = decide_units(track.path, points, {stated for _, stated in rows})
        present = points[..., 2] > 0
        facts["frames_without_points"] = int((~present.any(1)).sum())
        if not present.any():
            self.add(track.path, "no key point in any frame", "detect the poses again, or remove the video")
        if video is None and units == "pixel":
            return
        points = normalize_key_points(points, units, video.size if video else (1, 1))
        place = points[..., :2]
        outside = ((place < -OUTSIDE_TOLERANCE) | (place > 1 + OUTSIDE_TOLERANCE)).any(-1) & present
        if outside.any():
            row, point = np.argwhere(outside)[0]
            x, y = place[row, point]
            self.add(
                track.file(int(row)),
                f"key point {point} at ({x:.2f}, {y:.2f}) of the frame is outside it; "
                f"so are {outside.sum()} points in {outside.any(1).sum()} frames",
                f'set their confidence to 0, or state the units (taken: {units}) as "coordinates"',
                "warning",
            )

    def check_arrays(self, track: Track, rows: list, facts: dict, video: VideoReader | None) -> None:
        shapes = Counter(shape for shape, _, _, _ in rows)
        facts["shape"] = list(shapes.most_common(1)[0][0])
        if len(shapes) > 1:
            row = next(i for i, (shape, *_) in enumerate(rows) if list(shape) != facts["shape"])
            problem = f"shape {rows[row][0]}, other frames have {tuple(facts['shape'])}"
            self.add(track.file(row), problem, "make all of them alike")
        if track.kind == "features" and track.num_rows > 1:
            lowest, highest = min(low for _, low, _, _ in rows), max(high for _, _, high, _ in rows)
            if len({digest for *_, digest in rows}) == 1:
                zero = " zero" if lowest == highest == 0 else ""
                self.add(track.path, f"the same{zero} values in every frame", "extract the features again")
        if video is not None and is_map(track, facts["shape"]):
            with self.collect():
                check_map_size(track, facts["shape"][1:], video.size)


def _kept(track: Track, value):
    """What a check needs of a row: key points whole, of arrays (shape, least, greatest, digest)."""
    if track.kind == "key_points":
        return value
    return value.shape, float(value.min()), float(value.max()), hashlib.blake2b(value.tobytes()).digest()


def _unlike_shapes(checks: list[_SampleCheck], folder: DataFolder, channels: dict[str, int]) -> list[Fault]:
    """Samples whose feature arrays are not shaped as the others': they cannot share a batch."""
    faults = []
    for name in channels:
        shapes = defaultdict(list)
        for check in checks:
            facts = check.facts.get(name, {})
            if facts.get("kind") == "features" and "shape" in facts:
                shapes[tuple(facts["shape"])].append(check.sample)
        usual = max(shapes, key=lambda shape: len(shapes[shape]), default=None)
        for shape in shapes.keys() - {usual}:
            for sample in shapes[shape]:
                path = str(folder.track(sample, name).path)
                problem = f"a frame's {name} has shape {shape}, other samples' {usual}"
                faults.append(Fault(sample.sample_id, path, problem, "extract all samples alike"))
    return sorted(faults, key=lambda fault: fault.sample_id)


def _shared_videos(folder: DataFolder, validation_data_dir: str | Path) -> list[Fault]:
    """Training videos that are, byte for byte, in the validation folder too."""
    try:
        validation = list_data_folder(validation_data_dir, [])
    except DataError as error:
        return [_fault("", error)]
    by_size = defaultdict(list)
    for sample in validation.samples:
        for path in sample.video_paths:
            by_size[path.stat().st_size].append(path)
    faults = []
    for sample in folder.samples:
        for path in sample.video_paths:
            same = [other for other in by_size[path.stat().st_size] if _digest(other) == _digest(path)]
            if same:
                problem = f"is the same video as {same[0]} of the validation data"
                faults.append(
                    Fault(sample.sample_id, str(path), problem, "keep it in one of them", "warning")
                )
    return faults


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
