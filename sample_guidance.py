"""Sample a video with a trained model: an image of a person, and a driving video, poses, music or a song.

`python sample_guidance.py --help` lists all flags. Exit code 2: wrong input, and one line that says what.
"""

import system.waiting  # before torch is loaded

import argparse
import contextlib
import sys
from pathlib import Path

from tqdm import tqdm

from pipelines.champ_pipeline import ChampPipeline
from pipelines.flags import (
    add_input_flags,
    add_lora_flags,
    add_sampling_flags,
    check_sampling_flags,
    lora_scales,
)
from sampling.guidance import OF_VIDEOS
from sampling.job import sample_video
from sampling.merging import merge_adapters
from system.command_line import Parser, number, run_main
from system.errors import ConfigError

OF_MERGING = ("model_path", "lora", "lora_scale", "merge_lora", "overwrite", "guidance_modules")


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong input, 130 stopped by Ctrl-C."""
    return run_main("sample_guidance.py", lambda: sample(parse_arguments(argv)))


def sample(arguments: argparse.Namespace) -> int:
    """Write the video, or the model of --merge_lora; say what was made; return the exit code."""
    pipeline = model_of_checkpoint(arguments)
    if arguments.merge_lora is not None:
        print(f"wrote {merge_adapters(arguments, pipeline)}: --model_path with the adapters merged in")
        return 0
    with contextlib.closing(Bars()) as bars:
        sampled = sample_video(arguments, pipeline=pipeline, on_progress=bars)
    print(f"wrote {sampled.paths[0]}: {sampled.summary}, in {sampled.seconds:.0f} s")
    return 0


def model_of_checkpoint(arguments: argparse.Namespace) -> ChampPipeline | None:
    """Return the model of a run's checkpoint, with its adapters where it trains some; None of a final/."""
    from training.checkpoints.pipeline import is_checkpoint, pipeline_of_checkpoint  # slow

    path = Path(arguments.model_path)
    if not is_checkpoint(path):
        return None
    for flag in ("lora", "compile"):
        if getattr(arguments, flag):
            raise ConfigError(
                f"--{flag}: --model_path {path} is a checkpoint; leave it out, or give a final/"
            )
    return pipeline_of_checkpoint(path)


class Bars:
    """One progress bar after the other, one per part of the work."""

    def __init__(self) -> None:
        self._bar, self._text = None, None

    def __call__(self, text: str, done: int, total: int) -> None:
        if text != self._text:
            self.close()
            self._bar, self._text = tqdm(total=total, desc=text), text
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


# ---- The command line ----


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags."""
    parser = Parser(prog="sample_guidance.py", description=__doc__.split("\n")[0])
    add, positive = parser.add_argument, number(int, 1)
    # fmt: off
    add("--model_path", required=True, help="a trained model: OUTPUT_DIR/final")
    add_lora_flags(add)
    add("--merge_lora", metavar="FOLDER", help="write no video, but --model_path with --lora merged into it")
    add("--reference_image", help="image of the person: jpg, png or webp")
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("--poses", help="folder of pose files, one per frame (JSON), or one FILE.npy [N, K, 3]")
    one_of("--music_to_pose_path", help="a model of train_music_to_pose.py, to dance to --music or --song")
    one_of("--driving_video", help="video to take poses, music features and sound from")
    add("--guidance_types", nargs="+", choices=OF_VIDEOS,
        help="what to take from --driving_video (default: what the model was trained with)")
    add("--pose_estimator", metavar="NAME",
        help="finds the poses of --driving_video (default: that of the training data)")
    add("--dwpose_dir", metavar="DIR", help="folder with DWPose's models, for --pose_estimator dwpose")
    add("--start_seconds", type=number(float, 0), default=0.0,
        help="second of --driving_video, or without one of --song, to begin at (default: 0)")
    add("--num_seconds", type=number(float, 0, above=True), help="of it, at most (default: to its end)")
    add("--retarget", choices=("auto", "none"),
        help="put the dance on the body of the reference (default: auto for --driving_video, else none)")
    add("--smooth_poses", action="store_true", help="take the trembling of the tracker out of the poses")
    add("--save_guidance", metavar="DIR", help="keep poses and features that are made, as a data folder")
    add("--reference_pose", help="pose file of the person in the image (default: estimated in the image)")
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("--music", help="folder of music feature files, one per frame, or one FILE.npy [N, D]")
    one_of("--song", help="sound file to make music features of; the video's sound, too, without --audio")
    add("--guidance", nargs="+", action="extend", default=[], metavar="TYPE=PATH",
        help="any other trained type")
    add("--audio", help="file with the sound (mp3, mp4, ...): frame 0 is at 0 s, or a video's first frame")
    add("--output", help="the mp4 to write; its folder is made")
    add("--overwrite", action="store_true", help="replace what exists: --output, or --merge_lora")
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
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.merge_lora is not None:
        check_merging(arguments, parser)
        return arguments
    check_sampling_flags(arguments)
    if arguments.retarget is None:
        arguments.retarget = "auto" if arguments.driving_video else "none"
    check_together(arguments)
    return arguments


def check_merging(arguments: argparse.Namespace, parser: Parser) -> None:
    """Raise ConfigError where there is nothing to merge, or a flag is of sampling, which is not done."""
    if not lora_scales(arguments) and not Path(arguments.model_path).name.startswith("checkpoint-"):
        raise ConfigError("--merge_lora: there is no --lora to merge in")
    given = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
    of_sampling = [f"--{name}" for name in given if name not in OF_MERGING]
    if of_sampling:
        problem = f"--merge_lora writes a model and samples nothing: leave out {', '.join(of_sampling)}"
        raise ConfigError(f"{problem}; then sample with --model_path {arguments.merge_lora}")


def check_together(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for a flag about something that is not given."""
    missing = [f"--{name}" for name in ("reference_image", "output") if not getattr(arguments, name)]
    if missing:
        raise ConfigError(f"a video needs {' and '.join(missing)}; --help lists all flags")
    has_poses = bool(arguments.poses or arguments.driving_video)
    is_made = bool(arguments.driving_video or arguments.song or arguments.music_to_pose_path)
    is_changed = arguments.retarget == "auto" or arguments.smooth_poses
    goes_with = {  # {flag: (whether there is what it is about, its name)}
        "guidance_types": (arguments.driving_video, "--driving_video"),
        "pose_estimator": (arguments.driving_video, "--driving_video"),
        "dwpose_dir": (arguments.driving_video, "--driving_video"),
        "start_seconds": (arguments.driving_video or arguments.song, "--driving_video or --song"),
        "num_seconds": (arguments.driving_video or arguments.song, "--driving_video or --song"),
        "smooth_poses": (has_poses, "--poses or --driving_video"),
        "save_guidance": (is_made or is_changed, "--driving_video, --song or --music_to_pose_path"),
        "reference_pose": (
            arguments.music_to_pose_path or (has_poses and arguments.retarget == "auto"),
            "--music_to_pose_path, or --retarget auto",
        ),
    }  # fmt: skip
    for flag, (is_there, what) in goes_with.items():
        if getattr(arguments, flag) and not is_there:
            raise ConfigError(f"--{flag}: there is no {what}")
    if arguments.pose_size and arguments.driving_video:
        raise ConfigError("--pose_size: --driving_video states its own")
    if arguments.retarget == "auto" and not has_poses:
        raise ConfigError("--retarget auto: there is no --poses or --driving_video")


if __name__ == "__main__":
    sys.exit(main())
