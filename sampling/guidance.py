"""Guidance as the flags name it: which files, or what makes them, then the conditions of one clip."""

import argparse
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from datasets.data_folder import METADATA_FOLDER, type_dir
from datasets.guidance.files import load_json
from datasets.guidance.track import META_NAME
from datasets.guidance.tracks import Track, open_track
from pipelines.champ_pipeline import ChampPipeline
from pipelines.dance_input import check_music_recipe, recipe_of
from pipelines.guidance_input import Framing, MapSource, Timeline, read_conditions
from system.errors import ConfigError, DataError
from system.whole_files import whole_file

from .making import Rows
from .report import Report

OF_VIDEOS = ("pose", "music")  # guidance that a video gives
MOST_MAP_BYTES = 2**28  # of one type; larger maps are read window by window


def guidance_sources(arguments: argparse.Namespace) -> tuple[dict[str, Path], set[str]]:
    """Return ({guidance type: its files, or what makes them}, types that an untrained model may ignore).

    Raises ConfigError where the flags do not fit together.
    """
    given = {
        "pose": arguments.poses or arguments.music_to_pose_path, "music": arguments.music or arguments.song
    }  # fmt: skip
    optional = {"music"} if arguments.music_to_pose_path else set()
    if arguments.driving_video is not None:
        optional |= {name for name in arguments.guidance_types or OF_VIDEOS if given[name] is None}
        given |= dict.fromkeys(optional, arguments.driving_video)
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
        raise ConfigError(
            "no guidance: give --driving_video, --song, --poses, --music, or --guidance TYPE=PATH"
        )
    if arguments.music_feature_fps is not None and not (arguments.music or arguments.song):
        raise ConfigError("--music_feature_fps: there is no --music")
    if arguments.music_to_pose_path is not None and given["music"] is None:
        raise ConfigError("--music_to_pose_path: give --music or --song to dance to")
    return sources, optional


def check_trained(sources: dict[str, Path], pipeline: ChampPipeline, optional: set[str]) -> dict[str, Path]:
    """Return the sources of types that the model was trained with.

    optional: types that may be others. Raises ConfigError for all others, or where nothing is left.
    """
    trained = pipeline.guidance_encoders.guidance_types
    known = {name: path for name, path in sources.items() if name in trained}
    for name, path in sources.items():
        if name not in (*trained, *(optional if known else ())):
            problem = f"{path}: guidance of type {name}"
            raise ConfigError(f"{problem}, this model was trained with {', '.join(trained)}")
    return known


def check_recipes(arguments: argparse.Namespace, types: Collection[str], trained, report: Report) -> None:
    """Raise DataError for --music of another recipe than the model's; note --poses of another estimator.

    The columns of another recipe mean something else; the points of all estimators are the same. types: that
    are guidance at all; trained: the pipeline's config.
    """
    if arguments.music and "music" in types:
        check_music_recipe(open_track("music", arguments.music), trained.get("music_recipe"))
    if arguments.poses and "pose" in types:
        recorded, recipe = recipe_of(open_track("pose", arguments.poses)), trained.get("pose_recipe")
        if None not in (recorded, recipe) and recorded != recipe:
            report.note(
                f"{arguments.poses}: poses of {recorded}, the model was trained with those of {recipe}"
            )


def open_tracks(sources: dict[str, Path], music_feature_fps: float | None) -> list[Track]:
    """Return the tracks of {type: path}. Raises DataError."""
    rates = {"music": music_feature_fps}
    return [open_track(name, path, fps=rates.get(name)) for name, path in sources.items()]


def make_timeline(
    trained, frame_rate: float | None, start_frame: int, stride: int | None, num_frames: int | None
) -> Timeline:
    """Return the times of the frames to make; what is not given is as `trained`, the pipeline's config."""
    frame_rate = frame_rate or trained.frame_rate
    if frame_rate is None:
        raise ConfigError("the model does not say its training videos' frame rate: give --frame_rate")
    return Timeline(frame_rate, start_frame, stride or trained.frame_stride, num_frames)


def read_guidance(
    pipeline: ChampPipeline, tracks: list[Track], timeline: Timeline, framing: Framing, report: Report
) -> dict[str, torch.Tensor | MapSource]:
    """Return {type: [F, ...]} for a clip."""
    if framing.source_size is not None and not any(track.kind.in_frame for track in tracks):
        raise ConfigError("--pose_size: there are no poses or maps that it could be the size of")
    config = pipeline.guidance_encoders.config
    channels = dict(zip(config.guidance_types, config.guidance_input_channels, strict=True))
    guidance, is_assumed = read_conditions(tracks, channels, timeline, framing, MOST_MAP_BYTES)
    if is_assumed:
        height, width = framing.fallback_size
        report.note(
            f"poses are taken to come from frames of the reference image's shape, {width} x {height}; "
            "if not, give their video's --pose_size WIDTH HEIGHT"
        )
    return guidance


# ---- What is made, as a data folder ----


def saved_paths(root: Path, name: str) -> dict[str, Path]:
    """Return {guidance type, or "metadata": where it is saved} below a data folder."""
    paths = {one: type_dir(root, one) / f"{name}.npy" for one in OF_VIDEOS}
    return paths | {"metadata": root / METADATA_FOLDER / f"{name}.json"}


def check_saving(root: str | None, name: str, *, may_replace: bool) -> None:
    """Raise ConfigError where --save_guidance cannot save, or would replace what is there."""
    if root is None:
        return
    for path in saved_paths(Path(root), name).values():
        if path.exists() and not may_replace:
            raise ConfigError(f"--save_guidance: {path} exists; add --overwrite, or choose another folder")
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--save_guidance {root}: cannot be made ({error.strerror})") from None


def save_made(root: Path, name: str, made: dict[str, Rows], facts: dict | None = None) -> dict[str, Path]:
    """Return {guidance type: its file}, one .npy file each, its meta.json and metadata beside it."""
    paths = saved_paths(root, name)
    check_metas({paths[one].with_name(META_NAME): rows.meta for one, rows in made.items()})
    for path in (paths[one] for one in (*made, *(["metadata"] if facts else []))):
        path.parent.mkdir(parents=True, exist_ok=True)
    for one, rows in made.items():
        path = paths[one]
        with whole_file(path.with_name(META_NAME)) as aside:
            aside.write_text(json.dumps(rows.meta) + "\n", encoding="utf-8")
        with whole_file(path) as aside, aside.open("wb") as file:
            np.save(file, rows.values)
    if facts is not None:
        with whole_file(paths["metadata"]) as aside:
            aside.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {one: paths[one] for one in made}


def check_metas(metas: dict[Path, dict]) -> None:
    """Raise DataError where a folder has tracks of another rate or frame already, before any is written."""
    for path, meta in metas.items():
        if path.exists() and load_json(path) != meta:
            problem = "states another rate or frame than these are of"
            raise DataError(path, problem, "choose another folder for --save_guidance")
