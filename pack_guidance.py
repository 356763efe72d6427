"""Pack the data of large folders into few files: shards to train from, or tracks of one file each.

`python pack_guidance.py --help` lists all flags; docs/guide.md shows how it is used. Exit code 2: wrong
input, or a sample that could not be packed; each has one line that says what to do.
"""

import system.waiting  # before torch is loaded

import argparse
import sys
from pathlib import Path

from caching.packing import pack_cache
from datasets.checking.data_report import printable
from datasets.packed_tracks import packed_poses
from shards.fetching import is_address
from shards.from_folder import FolderSettings, pack_folder
from shards.layout import INDEX_NAME
from shards.unpacking import unpack_shards, verify_shards
from system.command_line import Parser, number, run_main
from system.errors import ConfigError
from system.user_code import import_user_modules


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong input or a sample that was not packed, 130 stopped by Ctrl-C."""
    return run_main(
        "pack_guidance.py", lambda: run(build_parser().parse_args(argv)),
        when_stopped="stopped; the same command goes on where it was",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked for; return the exit code. Raises ConfigError."""
    needs_output = not (arguments.tracks_only or arguments.verify)
    if needs_output and arguments.output_dir is None:
        raise ConfigError("--output_dir: give the folder to write to")
    if arguments.output_dir is not None and not needs_output:
        raise ConfigError("--output_dir has no meaning with --tracks_only and --verify: leave it out")
    folders = {"output_dir": arguments.output_dir}
    folders |= {} if arguments.verify else {"data_dir": arguments.data_dir}
    for name, folder in folders.items():
        if folder is not None and is_address(folder):
            fix = "give a folder, and copy from or to the store with the store's own tools"
            raise ConfigError(f"--{name} {folder}: is an address: {fix}")
    import_user_modules(arguments.guidance_modules)
    if not (arguments.verify or arguments.unpack) and Path(arguments.data_dir, INDEX_NAME).is_file():
        fix = "give the data folder; --unpack makes one of shards"
        raise ConfigError(f"--data_dir {arguments.data_dir}: has shards, which are packed already: {fix}")
    if arguments.tracks_only:
        return pack_tracks(arguments)
    if arguments.verify:
        return verify_shards(arguments.data_dir, num_workers=arguments.num_workers)
    if arguments.unpack:
        return unpack_shards(
            Path(arguments.data_dir), Path(arguments.output_dir), num_workers=arguments.num_workers
        )
    if arguments.from_cache is not None:
        return pack_cache(
            arguments.data_dir, Path(arguments.from_cache), Path(arguments.output_dir),
            shard_bytes=arguments.shard_mb * 2**20, num_workers=arguments.num_workers,
        )  # fmt: skip
    channels = arguments.guidance_input_channels or [1, 134]
    if len(channels) != len(arguments.guidance_types):
        raise ConfigError("--guidance_input_channels: give one number for each of --guidance_types")
    settings = FolderSettings(
        dict(zip(arguments.guidance_types, channels, strict=True)), arguments.music_feature_fps,
        arguments.skip_invalid, arguments.shard_mb * 2**20,
    )  # fmt: skip
    return pack_folder(
        Path(arguments.data_dir), Path(arguments.output_dir), settings, num_workers=arguments.num_workers
    )


def pack_tracks(arguments: argparse.Namespace) -> int:
    """Pack the tracks that are not packed, sum up; return the exit code."""
    channels, *others = arguments.guidance_input_channels or [134]
    if others:
        raise ConfigError("--guidance_input_channels: give one number with --tracks_only, that of the poses")
    num_packed, problems = packed_poses(arguments.data_dir, channels, num_workers=arguments.num_workers)
    for problem in problems:
        print(printable(f"error: {problem}"), file=sys.stderr)
    left = f", {len(problems)} left as they are" if problems else ""
    tracks = "1 pose track" if num_packed == 1 else f"{num_packed} pose tracks"
    print(printable(f"{arguments.data_dir}: {tracks} packed{left}"))
    return 2 if problems else 0


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data_dir", required=True, help="data folder; with --unpack and --verify: of shards")
    add("--output_dir", help="folder to write the shards to; with --unpack: the data folder to be")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--tracks_only", action="store_true",
        help="make one file poses/NAME.npy of each folder poses/NAME of JSON files, with the same values; "
        "the folder moves to poses_json/NAME",
    )  # fmt: skip
    ways.add_argument("--verify", action="store_true", help="read all shards and compare them with the index")
    ways.add_argument("--unpack", action="store_true", help="write the files of the data folder again")
    ways.add_argument(
        "--from_cache", metavar="CACHE_DIR",
        help="pack the latents of --data_dir that training with --cache_latents made, instead of videos",
    )  # fmt: skip
    add("--guidance_types", nargs="+", default=["music", "pose"], metavar="TYPE", help="what is packed")
    add(
        "--guidance_input_channels", type=number(int, 1), nargs="+", metavar="K",
        help="one number per type, as in training; with --tracks_only the key points per pose (134)",
    )  # fmt: skip
    add(
        "--music_feature_fps", type=number(float, 0, above=True),
        help="rate of the music feature rows, as in training",
    )  # fmt: skip
    add("--guidance_modules", nargs="+", default=[], metavar="MODULE", help="your modules, as in training")
    add("--skip_invalid", action="store_true", help="leave out samples with a fault instead of stopping")
    add("--shard_mb", type=number(int, 1), default=1024, help="size of a shard in MiB, about (1024)")
    add("--num_workers", type=number(int, 0), help="processes; by default one per core, at most 8")
    return parser


if __name__ == "__main__":
    sys.exit(main())
