"""The truth: clips of a data folder with what belongs to them, and what could not be read of it."""

import copy
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from datasets import DataError, VideoReader
from datasets.data_folder import (
    METADATA_FOLDER,
    DataFolder,
    Sample,
    list_data_folder,
    read_metadata,
    type_dir,
)
from datasets.guidance.track import META_NAME, Track
from datasets.guidance.tracks import find_track, read_rows
from datasets.media.pictures import read_image
from datasets.report.page import count
from datasets.transforms import ClipTransform, Size, make_transform, person_box

from .sources import FrameSource, resized_to, video_source


@dataclass(frozen=True)
class ClipSettings:
    """Which frames of each video are compared, and how they are fitted.

    resolution: the truth is cropped or padded to it, as training does; None: it stays as it is.
    """

    start_frame: int = 0
    num_frames: int | None = None
    frame_stride: int = 1
    resolution: Size | None = None
    fit: str = "auto"
    music_feature_fps: float | None = None


@dataclass(frozen=True)
class Truth:
    """The clip of a data folder that a prediction is held against.

    guidance: {type: values [F, ...]} as the video's frames have it, key points and maps in the fitted frame.
    music: (all rows [N, ...] from the first frame to the last, their seconds [N]), on the video's clock: a
    beat may be marked between two frames.
    lacks: {what could not be read: the line for the user}, keys are guidance types and "reference_image".
    """

    sample_id: str
    place: int  # in the folder: what is random is drawn from it
    video: VideoReader
    frames: np.ndarray  # int64 [F], of the video
    transform: ClipTransform
    guidance: dict[str, Tensor] = field(default_factory=dict)
    reference: np.ndarray | None = None  # uint8 [H, W, 3], as it is stored
    music: tuple[np.ndarray, np.ndarray] | None = None
    metadata: dict = field(default_factory=dict)  # metadata/ID.json
    lacks: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> np.ndarray:
        """Return when the frames are, float64 [F], on the video's clock."""
        return self.video.frame_seconds[self.frames]

    @property
    def size(self) -> Size:
        return self.transform.output_size

    @property
    def key_points(self) -> np.ndarray | None:
        """Return the driving key points [F, K, 3], x and y in pixels of the fitted frame."""
        if "pose" not in self.guidance:
            return None
        points = self.guidance["pose"].numpy().astype(np.float64)
        points[..., :2] *= self.size[::-1]
        return points

    def fault(self, name: str, otherwise: str) -> DataError:
        """Return the error of what could not be read; of what could, another fault of the video."""
        return DataError(self.lacks[name]) if name in self.lacks else DataError(self.video.path, otherwise)

    def source(self) -> FrameSource:
        return video_source(self.video, self.frames, self.transform)


class TruthFolder:
    """The clips of a data folder, by name. Raises DataError when there are no videos.

    driving_poses: a folder of pose tracks, NAME/ or NAME.npy, that drive the videos instead of the data's.
    """

    def __init__(
        self,
        root: str | Path,
        channels: dict[str, int],
        settings: ClipSettings,
        driving_poses: Path | None = None,
    ) -> None:
        self.root, self.channels, self.settings = Path(root), dict(channels), settings
        self.driving_poses = driving_poses
        self.folder: DataFolder = list_data_folder(self.root, list(channels))
        self._samples = {sample.sample_id: sample for sample in self.folder.samples}

    @property
    def sample_ids(self) -> list[str]:
        return list(self._samples)

    @property
    def faults(self) -> list[DataError]:
        """Return faults of the folder as a whole: guidance or reference images that it does not have."""
        return self.folder.faults

    def files(self, sample_id: str) -> list[Path]:
        """Return the files and folders that a clip is read from."""
        sample = self._samples[sample_id]
        types = ((type_dir(self.root, name), names) for name, names in sample.guidance_names.items())
        guidance = [folder / name for folder, names in types for name in (META_NAME, *names)]
        if self.driving_poses is not None:
            guidance += [self.driving_poses / name for name in (META_NAME, *self._driving_names(sample_id))]
        metadata = self.root / METADATA_FOLDER / f"{sample_id}.json"
        return [*sample.video_paths, *sample.reference_paths, *guidance, metadata]

    def clip(self, sample_id: str) -> Truth:
        """Return a clip of the folder. Raises DataError when its video is broken or too short.

        What is missing or broken beside the video is told in `lacks`.
        """
        sample, settings = self._samples[sample_id], self.settings
        video = VideoReader(sample.video_path())
        frames = clip_frames(video, settings)
        lacks, rows = {}, {}
        for name in self.channels:
            try:
                rows[name] = self._rows(sample, name, video, frames)
            except DataError as error:
                lacks[name] = str(error)
        transform = fitting(video.size, rows.values(), settings)
        guidance, music, reference, metadata = {}, None, None, {}
        for name, (track, values) in rows.items():
            try:
                guidance[name] = track.kind.fit(track, values, transform, video.size)
                if name == "music":
                    music = self._music(track, values, video, frames)
            except DataError as error:
                lacks[name] = str(error)
        try:
            reference = read_image(sample.reference_path())
        except DataError as error:
            lacks["reference_image"] = str(error)
        try:
            metadata = read_metadata(self.root, sample_id)
        except DataError as error:
            lacks["metadata"] = str(error)
        place = self.sample_ids.index(sample_id)
        return Truth(sample_id, place, video, frames, transform, guidance, reference, music, metadata, lacks)

    def with_own_pose(self, truth: Truth) -> Truth:
        """Return the clip with the data's poses, or none, where others drive the videos."""
        if self.driving_poses is None:
            return truth
        guidance = {name: values for name, values in truth.guidance.items() if name != "pose"}
        own = copy.copy(self)
        own.driving_poses = None
        try:
            track, rows = own._rows(self._samples[truth.sample_id], "pose", truth.video, truth.frames)
            guidance["pose"] = track.kind.fit(track, rows, truth.transform, truth.video.size)
        except DataError as error:
            return dataclasses.replace(truth, guidance=guidance, lacks=truth.lacks | {"pose": str(error)})
        return dataclasses.replace(truth, guidance=guidance)

    def _driving_names(self, sample_id: str) -> list[str]:
        names = (sample_id, f"{sample_id}.npy")
        return [name for name in names if (self.driving_poses / name).exists()]

    def _track(self, sample: Sample, name: str) -> Track:
        """Return the track that drives a clip. Raises DataError."""
        sample_id = sample.sample_id
        if name == "pose" and self.driving_poses is not None:
            return find_track(name, self.driving_poses, sample_id, names=self._driving_names(sample_id))
        if name not in sample.guidance_names or not sample.guidance_names[name]:
            faults = self.folder.faults + self.folder.sample_faults(sample)
            of_type = [fault for fault in faults if name in fault.problem or Path(fault.path).name == name]
            raise (of_type or [DataError(self.root, f"has no {name} of {sample_id}", "add it")])[0]
        return self.folder.track(sample, name, self.settings.music_feature_fps)

    def _rows(
        self, sample: Sample, name: str, video: VideoReader, frames: np.ndarray
    ) -> tuple[Track, np.ndarray]:
        """Return (track, its rows at these frames, in terms of the video's frame). Raises DataError."""
        track = self._track(sample, name)
        channels = self.channels[name]
        track.kind.check_layout(track, channels)  # before its rows are counted
        return track, read_rows(track, track.rows_at(frames, video.frame_seconds), channels, video.size)

    def _music(
        self, track: Track, values: np.ndarray, video: VideoReader, frames: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the music's rows from the first of these frames to the last, each once, and their seconds.

        values: the frames' own rows. Raises DataError.
        """
        of_frames = track.rows_at(frames, video.frame_seconds)
        numbers = np.arange(of_frames[0], of_frames[-1] + 1)
        if not np.array_equal(numbers, of_frames):
            values = read_rows(track, numbers, self.channels["music"], video.size)
        return values, video.frame_seconds[numbers] if track.fps is None else numbers / track.fps


def clip_frames(video: VideoReader, settings: ClipSettings) -> np.ndarray:
    """Return the frames of a video that are compared, int64 [F]. Raises DataError when there are too few."""
    frames = np.arange(settings.start_frame, len(video), settings.frame_stride)
    wanted = settings.num_frames
    if len(frames) < (wanted or 1):
        asked = f"{count(wanted or 1, 'frame')} asked for from frame {settings.start_frame} on"
        stride = f", {settings.frame_stride} apart" if settings.frame_stride > 1 else ""
        fix = "choose a smaller --num_frames or --start_frame, or take the video away"
        raise DataError(video.path, f"has {count(len(video), 'frame')}, {asked}{stride}", fix)
    return frames[:wanted]


def fitting(source_size: Size, rows, settings: ClipSettings) -> ClipTransform:
    """Return the transform of a clip's truth; a crop keeps the person of {(track, values)}."""
    if settings.resolution is None:
        return resized_to(source_size)
    points = [values.reshape(-1, 1, 3) for track, values in rows if track.kind.on_person]
    person = person_box(np.concatenate(points)) if points else None
    return make_transform(source_size, settings.resolution, fit=settings.fit, person=person)
