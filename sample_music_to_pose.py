"""Sample dances to a song: music and a person's pose in, pose files and a skeleton video out.

`python sample_music_to_pose.py --help` lists all flags. Exit code 2: wrong input, and one line says what.
"""

import system.waiting  # before torch is loaded

import argparse
import contextlib
import json
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from datasets.guidance.drawing import draw_pose
from datasets.guidance.track import META_NAME
from datasets.transforms import Size
from pipelines.dance_input import LIMBS, Kept, dance
from pipelines.flags import MOST_STEPS
from pipelines.loading import choose_device, load_music_to_pose
from preparation.piece_writing import rounded_pose, write_pose
from preparation.video_encoding import VideoEncoder
from sampling.dancing import find_reference, read_or_hear
from sampling.outputs import find_sound, refusals
from system.command_line import Parser, number, run_main
from system.errors import ConfigError
from system.whole_files import whole_file, whole_folder

VIDEO_HEIGHT = 512  # of the skeleton video


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong input, 130 stopped by Ctrl-C."""
    return run_main("sample_music_to_pose.py", lambda: sample(parse_arguments(argv)))


def sample(arguments: argparse.Namespace) -> int:
    """Read, sample, write; return the exit code."""
    # Check what is cheap to check before a model is loaded.
    started = time.monotonic()
    folders = output_folders(arguments.output_dir, arguments.num_tracks, may_replace=arguments.overwrite)
    device = choose_device(arguments.device, "no")

    # Music, and who dances.
    pipeline = load_music_to_pose("--model_path", arguments.model_path).to(device)
    rates = (arguments.music_feature_fps, pipeline.model.config.frame_rate)
    music = read_or_hear(pipeline, arguments.music, arguments.song, rates)
    sound = find_sound(arguments.audio or arguments.song, 0.0, len(music.rows) / music.rate)
    num_points = pipeline.model.config.num_key_points
    reference = find_reference(arguments.reference_pose, arguments.reference_image, num_points)
    kept = arguments.keep_poses and Kept(
        arguments.keep_poses, arguments.keep_seconds, tuple(arguments.keep_limbs)
    )

    # Sample.
    dances = dance(
        pipeline, music, reference, kept or None, num_inference_steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale, num_tracks=arguments.num_tracks,
        generator=torch.Generator().manual_seed(arguments.seed),
    )  # [T, N, K, 3]  # fmt: skip

    # Write.
    write_dances(folders, dances, Fraction(music.rate).limit_denominator(1001), reference.size, sound)
    made = f"{dances.shape[1]} poses, {music.rate:g} per second"
    for folder in folders:
        print(f"wrote {folder}: {made}, and {video_path(folder).name} to look at")
    print(f"in {time.monotonic() - started:.0f} s")
    return 0


# ---- The command line ----


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags."""
    positive = number(int, 1)
    parser = Parser(prog="sample_music_to_pose.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    # fmt: off
    add("--model_path", required=True, help="a trained model: OUTPUT_DIR/final of train_music_to_pose.py")
    music = parser.add_mutually_exclusive_group(required=True)
    music.add_argument("--song", help="sound file (mp3, mp4, ...); features are made as the model's were")
    music.add_argument("--music", help="folder of music feature files, or one FILE.npy [N, D]")
    add("--music_feature_fps", type=number(float, 0, above=True),
        help="rows per second of --music (default: as its data folder states, else the model's)")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--reference_image", help="image of the person, whose pose is estimated")
    who.add_argument("--reference_pose", help="pose of the person: a JSON file, or a .npy file")
    add("--output_dir", required=True, help="folder of the pose files to write, one per row of the music; "
        "OUTPUT_DIR.mp4 beside it shows them")
    add("--overwrite", action="store_true", help="replace what an earlier run wrote there")
    add("--audio", help="file with the sound of --music, for the video")
    add("--num_tracks", type=positive, default=1, help="dances to make: OUTPUT_DIR_0, OUTPUT_DIR_1, ...")
    add("--seed", type=number(int, 0), default=42, help="seed of the noise (default: 42)")
    add("--num_inference_steps", type=positive, default=25, help="sampling steps (default: 25)")
    add("--guidance_scale", type=number(float, 0), default=1.0, help="of the music; 1: none (default: 1)")
    add("--keep_poses", metavar="TRACK", help="pose files that the dance keeps a part of, and fits in with")
    add("--keep_seconds", type=number(float, 0), nargs=2, metavar=("FROM", "TO"), help="the part in time")
    add("--keep_limbs", nargs="+", choices=LIMBS, default=[], help="the part of the body")
    add("--device", help="cuda, cuda:1, cpu, ... (default: a GPU where there is one)")
    # fmt: on
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed flags. Raises ConfigError."""
    arguments = build_parser().parse_args(argv)
    if arguments.num_inference_steps > MOST_STEPS:
        raise ConfigError(f"--num_inference_steps: there are {MOST_STEPS} steps at most")
    if arguments.music_feature_fps is not None and arguments.music is None:
        raise ConfigError("--music_feature_fps: there is no --music")
    is_part = arguments.keep_seconds is not None or bool(arguments.keep_limbs)
    if is_part != (arguments.keep_poses is not None):
        raise ConfigError("--keep_poses goes together with --keep_seconds FROM TO, --keep_limbs, or both")
    if arguments.keep_seconds and arguments.keep_seconds[0] >= arguments.keep_seconds[1]:
        raise ConfigError("--keep_seconds: FROM must be less than TO")
    return arguments


# ---- Write ----


def video_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.mp4")


def output_folders(output_dir: str, num_tracks: int, *, may_replace: bool) -> list[Path]:
    """Return the folder of each dance. Raises ConfigError where something is there already."""
    path = Path(output_dir).absolute()
    if path.name in ("", ".."):
        raise ConfigError(f"--output_dir {output_dir}: give the name of a folder to make")
    folders = (
        [path.with_name(f"{path.name}_{one}") for one in range(num_tracks)] if num_tracks > 1 else [path]
    )
    for folder in folders:
        for one in (folder, video_path(folder)):
            is_there = one.exists() or one.is_symlink()
            if is_there and not may_replace:
                raise ConfigError(f"--output_dir: {one} exists; add --overwrite, or choose another name")
            if is_there and not _is_ours(one, folder):
                raise ConfigError(f"--output_dir: {one} is not what this script wrote; choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {path}: its parent cannot be made ({error.strerror})") from None
    return folders


def _is_ours(path: Path, folder: Path) -> bool:
    """Return whether a run wrote this: a file, or a folder of nothing but one track's poses."""
    if path != folder:
        return path.is_file()
    is_folder = path.is_dir() and not path.is_symlink()
    return is_folder and all(one.match("frame_*.json") or one.name == META_NAME for one in path.iterdir())


def write_dances(
    folders: list[Path], dances: np.ndarray, rate: Fraction, size: Size | None, sound: tuple | None
) -> None:
    """Write poses and skeleton videos, all or none of them. Raises DataError where the disk refuses."""
    with refusals(folders[0], "--output_dir"), contextlib.ExitStack() as stack:
        for folder, key_points in zip(folders, dances, strict=True):
            aside = stack.enter_context(whole_folder(folder))
            write_poses(aside, key_points, rate, size)
            video_aside = stack.enter_context(whole_file(video_path(folder)))
            write_skeletons(video_aside, key_points, rate, size, sound)


def write_poses(folder: Path, key_points: np.ndarray, rate: Fraction, size: Size | None) -> None:
    """Write a pose file per frame, and their rate."""
    for frame, points in enumerate(key_points):
        write_pose(folder / f"frame_{frame:05d}.json", frame, rounded_pose(points), size)
    meta = {"fps": float(rate), "coordinates": "normalized"}
    meta |= {"height": size[0], "width": size[1]} if size else {}
    (folder / META_NAME).write_text(json.dumps(meta) + "\n", encoding="utf-8")


def write_skeletons(
    path: Path, key_points: np.ndarray, rate: Fraction, size: Size | None, sound: tuple | None
) -> None:
    """Write a video of the skeletons, frame by frame: a long song needs no more memory than a short one."""
    aspect = size[1] / size[0] if size else 1.0
    drawn = (VIDEO_HEIGHT, max(2, 2 * round(VIDEO_HEIGHT * aspect / 2)))
    with VideoEncoder(path, drawn, rate=float(rate), time_base=1 / rate) as encoder:
        if sound is not None:
            encoder.add_sound(*sound)
        for frame, points in enumerate(key_points):
            encoder.write(draw_pose(points, drawn), frame / rate)


if __name__ == "__main__":
    sys.exit(main())
