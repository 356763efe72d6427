"""Guidance that a job makes itself: of a driving video, of a song, by a model of dances; poses that fit."""

import argparse
import functools
from dataclasses import dataclass, field

import numpy as np
import torch

from datasets.body.proportions import REFERENCE
from datasets.body.retargeting import fit_body
from datasets.body.smoothing import smooth_poses
from datasets.guidance.tracks import open_track, read_rows
from datasets.transforms import Size
from pipelines.champ_pipeline import ChampPipeline
from pipelines.dance_input import dance, read_reference
from pipelines.loading import load_music_to_pose
from preparation.piece_writing import rounded_pose
from preparation.pose.estimators import NUM_POINTS
from preparation.pose.of_image import pose_of_image
from preparation.settings import Settings
from preparation.song import USUAL_RECIPE, song_features
from preparation.sources import describe_file
from system.errors import ConfigError, DataError

from .dancing import find_reference, read_or_hear
from .driving_video import DrivingVideo, check_num_points, choose_estimator, open_driving_video
from .report import Report


@dataclass
class Rows:
    """A track that is made."""

    values: np.ndarray  # [N, ...]
    rate: float | None  # rows per second; None: one per frame
    size: Size | None = None  # of poses: (height, width) of their frame

    @property
    def meta(self) -> dict:
        """What a meta.json beside them has to state."""
        rate = {} if self.rate is None else {"fps": self.rate}
        if self.size is None:
            return rate
        return rate | {"coordinates": "normalized", "height": self.size[0], "width": self.size[1]}


@dataclass
class Maker:
    """Makes what the flags ask for, at `rate` rows per second. Raises UserError."""

    arguments: argparse.Namespace
    pipeline: ChampPipeline
    image: np.ndarray  # the reference, uint8 [H, W, 3]
    rate: float
    report: Report
    made: dict[str, Rows] = field(default_factory=dict)  # {guidance type: its rows}
    facts: dict = field(default_factory=dict)  # for the metadata of a data folder

    @functools.cached_property
    def channels(self) -> dict[str, int]:
        config = self.pipeline.guidance_encoders.config
        return dict(zip(config.guidance_types, config.guidance_input_channels, strict=True))

    @property
    def is_changed(self) -> bool:
        """Whether poses are smoothed, or put on the reference's body."""
        return self.arguments.smooth_poses or self.arguments.retarget == "auto"

    def make(self, types: set[str]) -> DrivingVideo | None:
        """Fill `made` and `facts`; return the video that drives. types: that are guidance at all."""
        arguments, video = self.arguments, None
        part = (arguments.start_seconds, arguments.num_seconds)
        if arguments.driving_video:
            video = open_driving_video(arguments.driving_video, *part, self.rate, self.report.note)
            if arguments.song:  # before poses are sought for minutes
                self._hear((0.0, len(video.row_seconds) / self.rate))
            self._watch(video, types)
        elif arguments.song and "music" in self.channels:
            self._hear(part)
        if arguments.music_to_pose_path:
            self._dance(part)
        elif arguments.poses and self.is_changed:
            self._read_poses()
        for rows in self.made.values():
            self.facts |= {"frame_rate": rows.rate or self.rate, "num_frames": len(rows.values)}
            self.facts |= {"size": list(rows.size)} if rows.size else {}
        return video

    # ---- a driving video ----

    def _watch(self, video: DrivingVideo, types: set[str]) -> None:
        arguments, config, note = self.arguments, self.pipeline.config, self.report.note
        if arguments.save_guidance:
            self.facts |= {"source": describe_file(video.reader.path), "start_seconds": video.start_seconds}
        if "pose" in types:  # fail at once
            check_num_points(self.channels["pose"])
            recipe = config.get("pose_recipe")
            settings = choose_estimator(arguments.pose_estimator, arguments.dwpose_dir, recipe, note)
        if "music" in types and not (arguments.music or arguments.song):
            name, music = video.music(config.get("music_recipe"), self.channels["music"])
            self.made["music"] = Rows(music.features, self.rate)
            self.facts |= {"music_features": {"name": name, "channels": self.channels["music"]},
                           "tempo": round(music.tempo, 2), "beat_seconds": music.beat_seconds}  # fmt: skip
        if "pose" in types:
            body = self._reference_body(settings) if arguments.retarget == "auto" else None
            progress = functools.partial(self.report.on_progress, "finding the poses")
            points = video.poses(settings, progress, smooth_poses if arguments.smooth_poses else None)
            self.made["pose"] = self._retargeted(Rows(points, self.rate, video.reader.size), body)
            self.facts["poses"] = {"name": settings.pose_estimator, "key_points": NUM_POINTS}

    # ---- a song, a dance ----

    def _hear(self, part: tuple[float, float | None]) -> None:
        """Make music features of --song."""
        recipe, num_features = self.pipeline.config.get("music_recipe"), self.channels["music"]
        features = song_features(
            self.arguments.song, self.rate, recipe=recipe, num_features=num_features, part=part,
            tell=self.report.note,
        )  # fmt: skip
        self.made["music"] = Rows(features, self.rate)
        self.facts["music_features"] = {"name": recipe or USUAL_RECIPE, "channels": num_features}

    def _dance(self, part: tuple[float, float | None]) -> None:
        """Make poses by a model of dances."""
        arguments = self.arguments
        dancer = load_music_to_pose("--music_to_pose_path", arguments.music_to_pose_path)
        num_points, trained = dancer.model.config.num_key_points, self.channels["pose"]
        if num_points != trained:
            problem = f"it makes {num_points} key points, --model_path was trained with {trained}"
            raise ConfigError(f"--music_to_pose_path {arguments.music_to_pose_path}: {problem}")
        rates = (arguments.music_feature_fps, self.rate)
        music = read_or_hear(dancer, arguments.music, arguments.song, rates, part)
        image_path = arguments.reference_image
        reference = find_reference(arguments.reference_pose, image_path, num_points, self.image)
        generator = torch.Generator().manual_seed(arguments.seed)
        dancer = dancer.to(self.pipeline.device)
        poses = dance(dancer, music, reference, rate=self.rate, generator=generator)[0]
        self.made["pose"] = Rows(poses, self.rate, reference.size or self.image.shape[:2])
        self.facts["poses"] = {"name": dancer.config.get("pose_recipe"), "key_points": num_points}

    # ---- poses that are there ----

    def _read_poses(self) -> None:
        """Take --poses, smoothed or put on the reference's body."""
        track, arguments = open_track("pose", self.arguments.poses), self.arguments
        size = arguments.pose_size and tuple(arguments.pose_size[::-1])
        size = size or track.kind.stated_size(track, ()) or self.image.shape[:2]
        points = read_rows(track, range(track.num_rows), self.channels["pose"], size)
        if arguments.smooth_poses:
            points = smooth_poses(points, track.fps or self.rate)
        fit = self._reference_body(Settings()) if arguments.retarget == "auto" else None
        self.made["pose"] = self._retargeted(Rows(points, track.fps, size), fit)

    def _reference_body(self, settings: Settings) -> tuple[np.ndarray, Size]:
        """Return (key points [K, 3] of the person in the image, (height, width) of their frame)."""
        path, image = self.arguments.reference_image, self.image
        if self.arguments.reference_pose is not None:
            reference = read_reference(self.arguments.reference_pose, self.channels["pose"])
            return reference.key_points, reference.size or image.shape[:2]
        try:
            points = pose_of_image(image, path, settings)
        except (ConfigError, DataError) as error:
            raise type(error)(f"{error}, or leave the poses as they are with --retarget none") from error
        return points[: self.channels["pose"]], image.shape[:2]

    def _retargeted(self, rows: Rows, reference: tuple[np.ndarray, Size] | None) -> Rows:
        """Return poses as they are written: on the reference's body if there is one, rounded."""
        points, size = rows.values, rows.size
        if reference is not None:
            try:
                fit = fit_body(points, size, *reference)
            except DataError as error:
                arguments = self.arguments
                reference_path = arguments.reference_pose or arguments.reference_image
                path = (
                    reference_path if error.path == REFERENCE else arguments.driving_video or arguments.poses
                )
                raise DataError(path, f"{error.path}: {error.problem}", error.fix) from error
            for note in fit.notes:
                self.report.note(note)
            points, size = fit.apply(points, size, reference[1]), reference[1]
        return Rows(np.stack([rounded_pose(one) for one in points]), rows.rate, size)
