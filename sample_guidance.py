"""Sample a video with a trained model: an image of a person, and poses, music or any other trained guidance.

`python sample_guidance.py --help` lists all flags. Exit code 2: wrong input, and one line that says what.
"""

import system.waiting  # before torch is loaded

import argparse
import sys

from pipelines.flags import add_input_flags, add_sampling_flags, check_sampling_flags
from sampling.job import sample_video
from system.command_line import Parser, number, run_main


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong input, 130 stopped by Ctrl-C."""
    return run_main("sample_guidance.py", lambda: sample(parse_arguments(argv)))


def sample(arguments: argparse.Namespace) -> int:
    """Write the video, say what was made; return the exit code."""
    sampled = sample_video(arguments)
    print(f"wrote {sampled.paths[0]}: {sampled.summary}, in {sampled.seconds:.0f} s")
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


if __name__ == "__main__":
    sys.exit(main())
