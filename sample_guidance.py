"""Sample a video with a trained model: an image of a person, and poses, music or any other trained guidance.

`python sample_guidance.py --help` lists all flags. Exit code 2: wrong input, and one line that says what.
"""

import system.waiting  # before torch is loaded

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from datasets import DataError, VideoReader, write_video
from datasets.guidance.tracks import Track, open_track
from datasets.media.pictures import read_picture
from datasets.media.sound import read_audio
from datasets.transforms import reference_transform
from pipelines.champ_pipeline import ChampPipeline
from pipelines.flags import add_input_flags, add_sampling_flags, check_sampling_flags
from pipelines.guidance_input import Framing, Timeline, count_frames, read_conditions
from pipelines.loading import autocast, choose_device, frame_size, load_pipeline
from pipelines.panels import draw_guidance, frames_to_uint8, make_panel
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
    rates = {"music": arguments.music_feature_fps}
    sources = guidance_sources(arguments.poses, arguments.music, arguments.guidance, rates["music"])
    device = choose_device(arguments.device, arguments.mixed_precision)
    image, notes = read_picture(arguments.reference_image)  # uint8 [H, W, 3]
    for note in notes:
        print(f"{arguments.reference_image}: {note}")

    # Model.
    import_user_modules(arguments.guidance_modules)
    pipeline = load_pipeline(arguments.model_path)
    check_trained(sources, pipeline)
    if arguments.enable_xformers_memory_efficient_attention:
        pipeline.enable_xformers_memory_efficient_attention()
    pipeline.to(device)

    # Guidance, aligned in time and fitted to the frames.
    size, fit = frame_size(arguments.resolution, pipeline), arguments.fit or pipeline.config.fit
    framing = Framing(size, arguments.pose_size and tuple(arguments.pose_size[::-1]), image.shape[:2], fit)
    times = (arguments.frame_rate, arguments.start_frame, arguments.frame_stride, arguments.num_frames)
    timeline = make_timeline(pipeline.config, *times)
    tracks = [open_track(name, path, fps=rates.get(name)) for name, path in sources.items()]
    sound = find_sound(arguments.audio, tracks, timeline)
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
    add("--poses", help="folder of pose files, one per frame (JSON), or one FILE.npy [N, K, 3]")
    add("--music", help="folder of music feature files, one per frame, or one FILE.npy [N, D]")
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


def guidance_sources(
    poses: str | None, music: str | None, others: list[str], music_feature_fps: float | None
) -> dict[str, Path]:
    """Return {guidance type: its files}. Raises ConfigError when there is none, or one is given twice."""
    given = {"pose": poses, "music": music}
    sources = {name: Path(path) for name, path in given.items() if path is not None}
    for text in others:
        name, _, path = text.partition("=")
        if not (name and path):
            example = "depth=data/depth/dance_001"
            raise ConfigError(f"--guidance {text}: expected TYPE=PATH, for example {example}")
        if name in sources:
            raise ConfigError(f"guidance of type {name} is given twice")
        sources[name] = Path(path)
    if not sources:
        raise ConfigError("no guidance: give --poses, --music, --guidance TYPE=PATH or several of them")
    if music_feature_fps is not None and "music" not in sources:
        raise ConfigError("--music_feature_fps: there is no --music")
    return sources


# ---- Model and guidance ----


def check_trained(sources: dict[str, Path], pipeline: ChampPipeline) -> None:
    """Raise ConfigError for guidance of a type that the model was not trained with."""
    trained = pipeline.guidance_encoders.guidance_types
    for name, path in sources.items():
        if name not in trained:
            problem = f"{path}: guidance of type {name}"
            raise ConfigError(f"{problem}, this model was trained with {', '.join(trained)}")


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


def first_frame_seconds(audio_path: str) -> float:
    """Return when a video shows its first frame, on the clock of its sound; 0 for a file of sound alone."""
    try:
        return float(VideoReader(audio_path).frame_seconds[0])
    except DataError:
        return 0.0


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
