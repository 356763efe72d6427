"""Guidance as the flags name it: which files, or what makes them, then the conditions of one clip."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from datasets.guidance.track import META_NAME
from datasets.guidance.tracks import Track, open_track
from pipelines.champ_pipeline import ChampPipeline
from pipelines.dance_input import dance
from pipelines.guidance_input import Framing, Timeline, read_conditions
from pipelines.loading import load_music_to_pose
from preparation.song import song_features
from system.errors import ConfigError

from .dancing import find_reference, read_or_hear


def guidance_sources(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return {guidance type: its files, or what makes them}. Raises ConfigError where they do not fit."""
    given = {
        "pose": arguments.poses or arguments.music_to_pose_path, "music": arguments.music or arguments.song
    }  # fmt: skip
    sources = {name: Path(path) for name, path in given.items() if path is not None}
    for text in arguments.guidance:
        name, _, path = text.partition("=")
        if not (name and path):
            example = "depth=data/depth/dance_001"
            raise ConfigError(f"--guidance {text}: expected TYPE=PATH, for example {example}")
        if name in sources:
            raise ConfigError(f"guidance of type {name} is given twice")
        sources[name] = Path(path)
    if not sources:
        raise ConfigError("no guidance: give --poses, --music, --guidance TYPE=PATH or several of them")
    if arguments.music_feature_fps is not None and "music" not in sources:
        raise ConfigError("--music_feature_fps: there is no --music")
    if arguments.music_to_pose_path is not None and given["music"] is None:
        raise ConfigError("--music_to_pose_path: give --music or --song to dance to")
    if arguments.reference_pose is not None and arguments.music_to_pose_path is None:
        raise ConfigError("--reference_pose: there is no --music_to_pose_path")
    return sources


def check_trained(sources: dict[str, Path], pipeline: ChampPipeline, hears: tuple[str, ...] = ()) -> None:
    """Raise ConfigError for guidance of a type that the model was not trained with.

    hears: types that a model of dances takes: they are taken out of the sources instead.
    """
    trained = pipeline.guidance_encoders.guidance_types
    for name in set(hears) - set(trained):
        sources.pop(name, None)
    for name, path in sources.items():
        if name not in trained:
            problem = f"{path}: guidance of type {name}"
            raise ConfigError(f"{problem}, this model was trained with {', '.join(trained)}")


def open_tracks(sources: dict[str, Path], music_feature_fps: float | None) -> list[Track]:
    """Return the tracks of {type: path}. Raises DataError."""
    rates = {"music": music_feature_fps}
    return [open_track(name, path, fps=rates.get(name)) for name, path in sources.items()]


def make_guidance(
    arguments: argparse.Namespace, pipeline: ChampPipeline, frame_rate: float, image: np.ndarray, folder: Path
) -> dict[str, Path]:
    """Return {guidance type: its file in `folder`} of what a song and a model of dances make."""
    config, made = pipeline.guidance_encoders.config, {}
    channels = dict(zip(config.guidance_types, config.guidance_input_channels, strict=True))
    if arguments.song and "music" in channels:
        recipe = pipeline.config.get("music_recipe")
        features = song_features(arguments.song, frame_rate, recipe=recipe, num_features=channels["music"])
        made["music"] = write_track(folder / "music", features, {"fps": frame_rate})
    if arguments.music_to_pose_path:
        dancer = load_music_to_pose("--music_to_pose_path", arguments.music_to_pose_path)
        num_points, trained = dancer.model.config.num_key_points, channels["pose"]
        if num_points != trained:
            problem = f"it makes {num_points} key points, --model_path was trained with {trained}"
            raise ConfigError(f"--music_to_pose_path {arguments.music_to_pose_path}: {problem}")
        music = read_or_hear(
            dancer, arguments.music, arguments.song, (arguments.music_feature_fps, frame_rate)
        )
        reference = find_reference(arguments.reference_pose, arguments.reference_image, num_points, image)
        generator = torch.Generator().manual_seed(arguments.seed)
        poses = dance(dancer.to(pipeline.device), music, reference, rate=frame_rate, generator=generator)[0]
        height, width = reference.size or image.shape[:2]
        meta = {"fps": frame_rate, "coordinates": "normalized", "height": height, "width": width}
        made["pose"] = write_track(folder / "pose", poses, meta)
    return made


def write_track(folder: Path, rows: np.ndarray, meta: dict) -> Path:
    """Return the file of a track's rows, with its meta.json beside it."""
    folder.mkdir()
    np.save(folder / "all.npy", rows)
    (folder / META_NAME).write_text(json.dumps(meta), encoding="utf-8")
    return folder / "all.npy"


def make_timeline(
    trained, frame_rate: float | None, start_frame: int, stride: int | None, num_frames: int | None
) -> Timeline:
    """Return the times of the frames to make; what is not given is as `trained`, the pipeline's config."""
    frame_rate = frame_rate or trained.frame_rate
    if frame_rate is None:
        raise ConfigError("the model does not say its training videos' frame rate: give --frame_rate")
    return Timeline(frame_rate, start_frame, stride or trained.frame_stride, num_frames)


def read_guidance(
    pipeline: ChampPipeline, tracks: list[Track], timeline: Timeline, framing: Framing
) -> dict[str, torch.Tensor]:
    """Return {type: [F, ...]} for a clip."""
    if framing.source_size is not None and not any(track.kind.in_frame for track in tracks):
        raise ConfigError("--pose_size: there are no poses or maps that it could be the size of")
    config = pipeline.guidance_encoders.config
    channels = dict(zip(config.guidance_types, config.guidance_input_channels, strict=True))
    guidance, is_assumed = read_conditions(tracks, channels, timeline, framing)
    if is_assumed:
        height, width = framing.fallback_size
        print(
            f"note: poses are taken to come from frames of the reference image's shape, {width} x {height}; "
            "if not, give their video's --pose_size WIDTH HEIGHT"
        )
    return guidance
