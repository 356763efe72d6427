"""Sample a video with a trained model: an image of a person, and poses, music or any other trained guidance.

`python sample_guidance.py --help` lists all flags. Exit code 2: wrong input, and one line that says what.
"""

import system.waiting  # before torch is loaded

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from datasets import write_video
from datasets.guidance.track import META_NAME
from datasets.guidance.tracks import Track, open_track
from datasets.media.pictures import read_picture
from datasets.media.sound import read_audio
from datasets.transforms import reference_transform
from pipelines.champ_pipeline import ChampPipeline
from pipelines.dance_input import dance
from pipelines.flags import add_input_flags, add_sampling_flags, check_sampling_flags
from pipelines.guidance_input import Framing, Timeline, count_frames, read_conditions
from pipelines.loading import autocast, choose_device, frame_size, load_music_to_pose, load_pipeline
from pipelines.panels import draw_guidance, frames_to_uint8, make_panel
from preparation.song import first_frame_seconds, song_features
from sample_music_to_pose import find_reference, read_or_hear
from system.command_line import Parser, number, run_main
from system.errors import ConfigError
from system.user_code import import_user_modules


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong input, 130 stopped by Ctrl-C."""
    return run_main("sample_guidance.py", lambda: sample(parse_arguments(argv)))


def sample(arguments: argparse.Namespace) -> int:
    """Read, sample, write; return the exit code."""
    # Check what is cheap to check before a model is loaded.
    started = time.monotonic()
    output_path, panel_path = output_paths(
        arguments.output, arguments.audio, has_panel=arguments.panel, may_replace=arguments.overwrite
    )
    sources = guidance_sources(arguments)
    device = choose_device(arguments.device, arguments.mixed_precision)
    image, notes = read_picture(arguments.reference_image)  # uint8 [H, W, 3]
    for note in notes:
        print(f"{arguments.reference_image}: {note}")

    # Model.
    import_user_modules(arguments.guidance_modules)
    pipeline = load_pipeline(arguments.model_path)
    check_trained(sources, pipeline, hears=("music",) if arguments.music_to_pose_path else ())
    if arguments.enable_xformers_memory_efficient_attention:
        pipeline.enable_xformers_memory_efficient_attention()
    pipeline.to(device)

    # Guidance, aligned in time and fitted to the frames.
    size, fit = frame_size(arguments.resolution, pipeline), arguments.fit or pipeline.config.fit
    framing = Framing(size, arguments.pose_size and tuple(arguments.pose_size[::-1]), image.shape[:2], fit)
    times = (arguments.frame_rate, arguments.start_frame, arguments.frame_stride, arguments.num_frames)
    timeline = make_timeline(pipeline.config, *times)
    with room_beside(output_path) as folder:
        sources |= make_guidance(arguments, pipeline, timeline.frame_rate, image, folder)
        tracks = open_tracks(sources, arguments.music_feature_fps)
        sound = find_sound(arguments.audio or arguments.song, tracks, timeline)
        guidance = read_guidance(pipeline, tracks, timeline, framing)
    reference = reference_transform(image, size, fit)  # [3, H, W] in [-1, 1]

    # Sample.
    with autocast(device, arguments.mixed_precision):
        frames = pipeline(
            reference, guidance, height=size[0], width=size[1],
            num_inference_steps=arguments.num_inference_steps, guidance_scale=arguments.guidance_scale,
            generator=torch.Generator().manual_seed(arguments.seed),
            context_frames=arguments.context_frames, context_overlap=arguments.context_overlap,
        ).frames[0]  # fmt: skip
    frames = np.round(255 * frames).astype(np.uint8)  # [F, H, W, 3]

    # Write.
    write_video(output_path, frames, timeline.clip_frame_rate, *sound)
    if panel_path is not None:
        write_video(panel_path, draw_panel(reference, guidance, frames), timeline.clip_frame_rate, *sound)
    made = f"{len(frames)} frames of {size[0]}x{size[1]}, {timeline.clip_frame_rate:g} per second"
    print(f"wrote {output_path}: {made}, in {time.monotonic() - started:.0f} s")
    return 0


# ---- The command line ----


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags."""
    positive = number(int, 1)
    parser = Parser(prog="sample_guidance.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    # fmt: off
    add("--model_path", required=True, help="a trained model: OUTPUT_DIR/final")
    add("--reference_image", required=True, help="image of the person: jpg, png or webp")
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("--poses", help="folder of pose files, one per frame (JSON), or one FILE.npy [N, K, 3]")
    one_of("--music_to_pose_path", help="a model of train_music_to_pose.py, to dance to --music or --song")
    add("--reference_pose", help="pose file of the person, to dance from (default: estimated in the image)")
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("--music", help="folder of music feature files, one per frame, or one FILE.npy [N, D]")
    one_of("--song", help="sound file to make music features of; the video's sound, too, without --audio")
    add("--guidance", nargs="+", action="extend", default=[], metavar="TYPE=PATH",
        help="any other trained type")
    add("--audio", help="file with the sound (mp3, mp4, ...): frame 0 is at 0 s, or a video's first frame")
    add("--output", required=True, help="the mp4 to write; its folder is made")
    add("--overwrite", action="store_true", help="replace --output where it exists")
    add("--panel", action="store_true", help="write OUTPUT_panel.mp4 too: reference, guidance and result")
    add("--num_frames", type=positive, help="frames to make (default: as many as the guidance has)")
    add("--start_frame", type=number(int, 0), default=0, help="guidance frame to begin at (default: 0)")
    add("--frame_stride", type=positive, help="guidance frames per frame made (default: as trained)")
    add("--frame_rate", type=number(float, 0, above=True),
        help="guidance frames per second (default: that of the training videos)")
    add("--resolution", type=positive, nargs="+", help="side, or height and width (default: as trained)")
    add("--pose_size", type=positive, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of the poses' own video")
    # fmt: on
    add_input_flags(add)
    add_sampling_flags(
        add, seed="seed of the noise",
        context_frames="frames made together, at most 32 (default: as trained)",
    )  # fmt: skip
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed flags. Raises ConfigError."""
    arguments = build_parser().parse_args(argv)
    check_sampling_flags(arguments)
    return arguments


def output_paths(
    output: str, audio: str | None, *, has_panel: bool, may_replace: bool
) -> tuple[Path, Path | None]:
    """Return where the video and the panel go. Raises ConfigError where something is there already."""
    output = Path(output)
    if output.suffix.lower() != ".mp4":
        raise ConfigError(f"--output {output}: give a name that ends in .mp4")
    if audio is not None and output.resolve() == Path(audio).resolve():
        raise ConfigError(f"--output {output}: is the file of --audio too; choose another name")
    panel = output.with_name(f"{output.stem}_panel.mp4") if has_panel else None
    for path in filter(None, (output, panel)):
        if path.is_dir() or (path.exists() and not may_replace):
            raise ConfigError(f"--output: {path} exists; add --overwrite, or choose another name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: its folder cannot be made ({error.strerror})") from None
    return output, panel


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


# ---- Model and guidance ----


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


@contextlib.contextmanager
def room_beside(output_path: Path) -> Iterator[Path]:
    """Yield a folder that is there in the block, for what is made on the way. Raises ConfigError."""
    try:
        with tempfile.TemporaryDirectory(dir=output_path.parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise ConfigError(f"--output {output_path}: cannot be written there ({error.strerror})") from None


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


def find_sound(path: str | None, tracks: list[Track], timeline: Timeline) -> tuple[str, float] | tuple[()]:
    """Return (--audio, its second at which the clip begins), or nothing. Raises DataError."""
    if path is None:
        return ()
    start_seconds = timeline.start_seconds + first_frame_seconds(path)
    clip_seconds = count_frames(tracks, timeline) / timeline.clip_frame_rate
    read_audio(path, start_seconds, clip_seconds)  # fail now, not after minutes
    return path, start_seconds


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


def draw_panel(reference: torch.Tensor, guidance: dict[str, torch.Tensor], frames: np.ndarray) -> np.ndarray:
    """Return frames of reference, guidance and result side by side, uint8 [F, H, W, 3]."""
    drawings = [draw_guidance(condition, frames.shape[1:3], name) for name, condition in guidance.items()]
    columns = [frames_to_uint8(reference[None])[0], *drawings, frames]
    return make_panel(columns, ["reference", *guidance, "result"])


if __name__ == "__main__":
    sys.exit(main())
