"""Pack the data of large folders into few files.

`python pack_guidance.py --help` lists all flags; docs/guide.md shows how it is used. Exit code 2: wrong
input, or a sample that could not be packed; each has one line that says what to do.
"""

import system.waiting  # before torch is loaded

import argparse
import sys

from datasets.checking.data_report import printable
from datasets.packed_tracks import packed_poses
from system.command_line import Parser, number, run_main


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong input or a sample that was not packed, 130 stopped by Ctrl-C."""
    return run_main(
        "pack_guidance.py", lambda: pack(build_parser().parse_args(argv)),
        when_stopped="stopped; the same command goes on where it was",
    )  # fmt: skip


def pack(arguments: argparse.Namespace) -> int:
    """Pack what is not packed, sum up; return the exit code."""
    num_packed, problems = packed_poses(
        arguments.data_dir, arguments.guidance_input_channels, num_workers=arguments.num_workers
    )
    for problem in problems:
        print(printable(f"error: {problem}"), file=sys.stderr)
    left = f", {len(problems)} left as they are" if problems else ""
    tracks = "1 pose track" if num_packed == 1 else f"{num_packed} pose tracks"
    print(printable(f"{arguments.data_dir}: {tracks} packed{left}"))
    return 2 if problems else 0


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="data folder")
    parser.add_argument(
        "--tracks_only", action="store_true", required=True,
        help="make one file poses/NAME.npy of each folder poses/NAME of JSON files, with the same values; "
        "the folder moves to poses_json/NAME",
    )  # fmt: skip
    parser.add_argument(
        "--guidance_input_channels", type=number(int, 1), default=134, metavar="K", help="key points per pose"
    )
    parser.add_argument(
        "--num_workers", type=number(int, 0), help="processes; by default one per core, at most 8"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
