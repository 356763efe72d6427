"""Sample a video with a trained model: a picture of a person, and poses, music or any other trained guidance.

`python sample_guidance.py --help` lists all flags. Exit code 2: wrong input, and one line that says what.
"""

import system.waiting  # before torch is loaded

import argparse
import contextlib
import sys
import time
from pathlib import Path

import numpy as np
import torch

from datasets import DataError, VideoReader, write_video
from datasets.guidance.tracks import Track, open_track
from datasets.media.sound import read_audio
from datasets.transforms import read_image, reference_transform
from models import ChampModel, ModelError
from pipelines.champ_pipeline import ChampPipeline
from pipelines.guidance_input import Timeline, count_frames, read_conditions
from pipelines.panels import draw_guidance, frames_to_uint8, make_panel
from system.command_line import Parser, number, run_main
from system.errors import ConfigError
from system.user_code import import_user_modules
from training.execution.launch import quiet_libraries

AUTOCAST_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong input, 130 stopped by Ctrl-C."""
    return run_main("sample_guidance.py", lambda: sample(parse_arguments(argv)))


def sample(arguments: argparse.Namespace) -> int:
    """Read, sample, write; return the exit code."""
    # Check what is cheap to check before a model is loaded.
    started = time.monotonic()
    output_path, panel_path = output_paths(arguments)
    sources = guidance_sources(arguments)
    device = choose_device(arguments)
    picture = read_image(arguments.reference_image)  # uint8 [H, W, 3]

    # Model.
    import_user_modules(arguments.guidance_modules)
    pipeline = load_pipeline(arguments.model_path)
    check_trained(sources, pipeline)
    if arguments.enable_xformers_memory_efficient_attention:
        pipeline.enable_xformers_memory_efficient_attention()
    pipeline.to(device)

    # Guidance, aligned in time and fitted to the frames.
    size = frame_size(arguments, pipeline)
    fit = arguments.fit or pipeline.config.fit
    timeline = make_timeline(arguments, pipeline)
    tracks = [
        open_track(name, path, fps=arguments.music_feature_fps if name == "music" else None)
        for name, path in sources.items()
    ]
    sound = ()
    if arguments.audio is not None:
        sound = (arguments.audio, timeline.start_seconds + first_frame_seconds(arguments.audio))
        clip_seconds = count_frames(tracks, timeline) / timeline.clip_frame_rate
        read_audio(*sound, clip_seconds)  # fail now, not after minutes
    guidance = read_guidance(arguments, pipeline, tracks, timeline, size, picture.shape[:2], fit)
    reference = reference_transform(picture, size, fit)  # [3, H, W] in [-1, 1]

    # Sample.
    precision = AUTOCAST_TYPES.get(arguments.mixed_precision)
    autocast = torch.autocast(device.type, precision) if precision else contextlib.nullcontext()
    with autocast:
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
        drawings = [draw_guidance(condition, size, name) for name, condition in guidance.items()]
        columns = [frames_to_uint8(reference[None])[0], *drawings, frames]
        panel = make_panel(columns, ["reference", *guidance, "result"])
        write_video(panel_path, panel, timeline.clip_frame_rate, *sound)
    print(
        f"wrote {output_path}: {len(frames)} frames of {size[0]}x{size[1]}, "
        f"{timeline.clip_frame_rate:g} a second, in {time.monotonic() - started:.0f} s"
    )
    return 0


# ---- The command line ----


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags."""
    positive, rate = number(int, 1), number(float, 0, above=True)
    parser = Parser(prog="sample_guidance.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    # fmt: off
    add("--model_path", required=True, help="a trained model: OUTPUT_DIR/final")
    add("--reference_image", required=True, help="image of the person: jpg, png or webp")
    add("--poses", help="folder of pose files, one per frame (JSON), or one FILE.npy [N, K, 3]")
    add("--music", help="folder of music feature files, one per frame, or one FILE.npy [N, D]")
    add("--guidance", nargs="+", action="extend", default=[], metavar="TYPE=PATH",
        help="any other trained type")
    add("--guidance_modules", nargs="+", default=[], help="your modules that register guidance encoders")
    add("--audio", help="file with the sound (mp3, mp4, ...): frame 0 is at 0 s, or a video's first frame")
    add("--output", required=True, help="the mp4 to write; its folder is made")
    add("--overwrite", action="store_true", help="replace --output where it exists")
    add("--panel", action="store_true", help="write OUTPUT_panel.mp4 too: reference, guidance and result")
    add("--num_frames", type=positive, help="frames to make (default: as many as the guidance has)")
    add("--start_frame", type=number(int, 0), default=0, help="guidance frame to begin at (default: 0)")
    add("--frame_stride", type=positive, help="guidance frames per frame made (default: as trained)")
    add("--frame_rate", type=rate, help="guidance frames per second (default: that of the training videos)")
    add("--music_feature_fps", type=rate, help="music rows per second, where it is not one row per frame")
    add("--resolution", type=positive, nargs="+", help="side, or height and width (default: as trained)")
    add("--fit", choices=("auto", "crop", "pad"),
        help="crop or pad what has another shape (default: as trained)")
    add("--pose_size", type=positive, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of the poses' own video")
    add("--num_inference_steps", type=positive, default=25, help="sampling steps (default: 25)")
    add("--guidance_scale", type=number(float, 0), default=3.5,
        help="classifier-free guidance (default: 3.5)")
    add("--seed", type=number(int, 0), default=42, help="seed of the noise (default: 42)")
    add("--context_frames", type=positive, help="frames made together, at most 32 (default: as trained)")
    add("--context_overlap", type=number(int, 0), help="frames that windows share (default: a quarter)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="autocast (default: no)")
    add("--device", help="cuda, cuda:1, cpu, ... (default: a GPU where there is one)")
    add("--enable_xformers_memory_efficient_attention", action="store_true",
        help="attention by xformers instead of PyTorch")
    # fmt: on
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed flags. Raises ConfigError."""
    arguments = build_parser().parse_args(argv)
    if arguments.resolution is not None and len(arguments.resolution) > 2:
        raise ConfigError("--resolution: give one side, or a height and a width")
    if arguments.num_inference_steps > 1000:
        raise ConfigError("--num_inference_steps: there are 1000 steps at most")
    return arguments


def output_paths(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """Return where the video and the panel go. Raises ConfigError where something is there already."""
    output = Path(arguments.output)
    if output.suffix.lower() != ".mp4":
        raise ConfigError(f"--output {output}: give a name that ends in .mp4")
    if arguments.audio is not None and output.resolve() == Path(arguments.audio).resolve():
        raise ConfigError(f"--output {output}: is the file of --audio too; choose another name")
    panel = output.with_name(f"{output.stem}_panel.mp4") if arguments.panel else None
    for path in filter(None, (output, panel)):
        if path.is_dir() or (path.exists() and not arguments.overwrite):
            raise ConfigError(f"--output: {path} exists; add --overwrite, or choose another name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: its folder cannot be made ({error.strerror})") from None
    return output, panel


def guidance_sources(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return {guidance type: its files}. Raises ConfigError when there is none, or one is given twice."""
    pairs = [("pose", arguments.poses), ("music", arguments.music)]
    pairs = [(name, path) for name, path in pairs if path is not None]
    for text in arguments.guidance:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise ConfigError(
                f"--guidance {text}: expected TYPE=PATH, for example depth=data/depth/dance_001"
            )
        pairs.append((name, path))
    if not pairs:
        raise ConfigError("no guidance: give --poses, --music, --guidance TYPE=PATH or several of them")
    names = [name for name, _ in pairs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ConfigError(f"guidance of type {repeated} is given twice")
    if arguments.music_feature_fps is not None and "music" not in names:
        raise ConfigError("--music_feature_fps: there is no --music")
    return {name: Path(path) for name, path in pairs}


def choose_device(arguments: argparse.Namespace) -> torch.device:
    """Return the device. Raises ConfigError when it is not there, or cannot work in the precision."""
    try:
        device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {arguments.device}: cannot be used here ({reason})") from None
    if arguments.mixed_precision == "fp16" and device.type == "cpu":
        raise ConfigError("--mixed_precision fp16 needs a GPU: use bf16 or no")
    return device


# ---- Model and guidance ----


def load_pipeline(model_path: str) -> ChampPipeline:
    """Return the pipeline of a model folder. Raises ModelError when it is not one, or not whole."""
    quiet_libraries()
    path = Path(model_path)
    if not (path / "model_index.json").is_file():
        hint = f"; did you mean {path / 'final'}?" if (path / "final" / "model_index.json").is_file() else ""
        problem = "has no model_index.json" if path.is_dir() else "is no folder"
        raise ModelError(
            f"--model_path {path} {problem}: expected the final/ folder that training writes{hint}"
        )
    model = ChampModel.from_pretrained(path)  # checks every key, which diffusers does not
    parts = {name: getattr(model, name) for name in ("unet", "reference_unet", "guidance_encoders")}
    try:
        return ChampPipeline.from_pretrained(path, **parts)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"--model_path {path} cannot be loaded: {reason}") from error


def check_trained(sources: dict[str, Path], pipeline: ChampPipeline) -> None:
    """Raise ConfigError for guidance of a type that the model was not trained with."""
    trained = pipeline.guidance_encoders.guidance_types
    for name, path in sources.items():
        if name not in trained:
            raise ConfigError(
                f"{path}: guidance of type {name}, this model was trained with {', '.join(trained)}"
            )


def frame_size(arguments: argparse.Namespace, pipeline: ChampPipeline) -> tuple[int, int]:
    """Return (height, width) of the frames: --resolution, or the trained one."""
    sides = arguments.resolution or [pipeline.config.height, pipeline.config.width]
    if None in sides:
        raise ConfigError("the model does not say at which resolution it was trained: give --resolution")
    factor = pipeline.frozen.latent_factor
    if any(side % factor for side in sides):
        raise ConfigError(f"--resolution {' '.join(map(str, sides))}: this model needs multiples of {factor}")
    return sides[0], sides[-1]


def make_timeline(arguments: argparse.Namespace, pipeline: ChampPipeline) -> Timeline:
    """Return the times of the frames to make; what is not given is as in training."""
    frame_rate = arguments.frame_rate or pipeline.config.frame_rate
    if frame_rate is None:
        raise ConfigError("the model does not say its training videos' frame rate: give --frame_rate")
    stride = arguments.frame_stride or pipeline.config.frame_stride
    return Timeline(frame_rate, arguments.start_frame, stride, arguments.num_frames)


def first_frame_seconds(audio_path: str) -> float:
    """Return when a video shows its first frame, on the clock of its sound; 0 for a file of sound alone."""
    try:
        return float(VideoReader(audio_path).frame_seconds[0])
    except DataError:
        return 0.0


def read_guidance(arguments, pipeline, tracks: list[Track], timeline: Timeline, size, picture_size, fit: str):
    """Return {type: [F, ...]} for a clip of frames of `size`; both sizes are (height, width)."""
    if arguments.pose_size is not None and not any(track.kind.in_frame for track in tracks):
        raise ConfigError("--pose_size: there are no poses or maps that it could be the size of")
    config = pipeline.guidance_encoders.config
    guidance, is_assumed = read_conditions(
        tracks, dict(zip(config.guidance_types, config.guidance_input_channels, strict=True)), timeline,
        output_size=size, source_size=tuple(arguments.pose_size[::-1]) if arguments.pose_size else None,
        fallback_size=picture_size, fit=fit,
    )  # fmt: skip
    if is_assumed:
        print(
            f"note: poses are taken to come from frames of the reference image's shape, {picture_size[1]} x "
            f"{picture_size[0]}; if not, give their video's --pose_size WIDTH HEIGHT"
        )
    return guidance


if __name__ == "__main__":
    sys.exit(main())
