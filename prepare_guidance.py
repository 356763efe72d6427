"""Prepare training data: a folder of raw dance videos with sound in, a data folder out.

`python prepare_guidance.py --help` lists all flags; README.md shows how it is used. Exit code 2: wrong input,
or a video that could not be prepared; each has one line that says what to do.
"""

import system.waiting  # before torch is loaded

import argparse
import contextlib
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from datasets import DataError
from datasets.checking.data_report import printable
from datasets.unread import Unread, unread_lines
from preparation.music.features import check_music_features, music_feature_names
from preparation.parts import Part, missing_lines, name_of, write_manifest
from preparation.pose import dwpose, mediapipe_pose  # noqa: F401 (estimators register themselves)
from preparation.pose.estimators import NUM_POINTS, check_pose_estimator, pose_estimator_names
from preparation.prepare_video import VideoResult
from preparation.ray_tasks import check_ray, run_on_ray
from preparation.sample_folder import close_output_dir, count_music_features, finished_pieces, open_output_dir
from preparation.settings import Settings
from preparation.sources import Source, estimate_frames, list_sources, list_unread, refused_by_windows
from preparation.workers import Done, Progress, run_workers
from system.command_line import Parser, number, run_main
from system.errors import ConfigError

MIN_RESOLUTION = 64
MAX_WORKERS = 8  # by default: each holds models and a few frames, about half a gigabyte


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong input or a video that failed, 130 stopped by Ctrl-C."""
    when_stopped = "stopped; the same command goes on where it was"
    return run_main("prepare_guidance.py", lambda: prepare(parse_arguments(argv)), when_stopped=when_stopped)


def prepare(arguments: argparse.Namespace) -> int:
    """List the videos, prepare those that are not done, sum up; return the exit code."""
    # Check what is cheap to check.
    started, settings = time.monotonic(), make_settings(arguments)
    input_dir, output_dir = Path(arguments.input_dir), Path(arguments.output_dir)
    check_music_features(settings.music_features)
    check_pose_estimator(settings)
    if arguments.executor == "ray":
        check_ray()
    sources, faults, unread = find_videos(arguments)
    if arguments.merge:
        return merge(sources, faults, settings, output_dir)
    part: Part | None = arguments.shard
    lock = open_output_dir(output_dir, part)

    # Prepare what is not done.
    try:
        if part is not None:
            write_manifest(output_dir, part, len(sources))
        todo, num_finished, stale = split_finished(sources, settings, output_dir)
        results, failed, fatal = run(start(todo, settings, output_dir, arguments), todo)
        faults += [*stale, *failed, *(fault for result in results for fault in result.faults)]
        if part is not None and fatal is None:
            write_manifest(output_dir, part, len(sources), faults)
    finally:
        close_output_dir(output_dir, lock, part)

    # Sum up.
    for line in unread_lines(unread, input_dir):
        print(printable(f"note: {line}"))
    print_faults(faults)
    if fatal is not None:
        raise fatal
    num_samples = sum(len(result.samples) for result in results)
    entries = "1 entry" if len(unread) == 1 else f"{len(unread)} entries"
    left_out = f", {entries} of {input_dir} not taken" if unread else ""
    print(
        f"{output_dir}: {_count(num_samples, 'sample')} made of {_count(len(todo), 'video')} in "
        f"{time.monotonic() - started:.0f} s, {num_finished} made before, "
        f"{_count(len(faults), 'fault')}{left_out}"
    )
    if part is None:
        print_next_commands(output_dir, count_music_features(output_dir))
    else:
        print(f"this was part {part}; when all are through: the same command with --merge instead of --shard")
    return 2 if faults else 0


def find_videos(arguments: argparse.Namespace) -> tuple[list[Source], list[DataError], list[Unread]]:
    """Return (the videos of this part, or of all; faults of others; what is not taken)."""
    input_dir, output_dir = Path(arguments.input_dir), Path(arguments.output_dir)
    sources, faults = list_sources(input_dir, Path(arguments.music_file) if arguments.music_file else None)
    unread = list_unread(input_dir, sources, faults, output_dir)
    if os.name == "nt":
        sources, refused = refused_by_windows(sources, output_dir)
        faults += refused
    part: Part | None = arguments.shard
    if part is not None:
        sources = [source for source in sources if part.holds(source.name)]
        faults = [fault for fault in faults if part.holds(name_of(fault))]
        unread = unread if part.number == 1 else []  # told once
    return sources, faults, unread


def merge(sources: list[Source], faults: list[DataError], settings: Settings, output_dir: Path) -> int:
    """Say which videos are missing after all parts have run, and why; return the exit code."""
    close_output_dir(output_dir, open_output_dir(output_dir))  # nobody is at work, nothing is left aside
    todo, num_finished, stale = split_finished(sources, settings, output_dir, tell=False)
    print_faults([*faults, *stale])
    missing = missing_lines(output_dir, [source.name for source in todo])
    for line in missing:
        print(f"error: {line}", file=sys.stderr)
    num_done = len(sources) - len(todo) - len(stale)
    whole = f"{_count(num_finished, 'sample')} of {num_done} of {_count(len(sources), 'video')}"
    num_faults = _count(len(faults) + len(stale), "fault")
    print(f"{output_dir}: {whole} are there, {len(todo)} missing, {num_faults}")
    print_next_commands(output_dir, count_music_features(output_dir))
    return 2 if missing or faults or stale else 0


def start(
    todo: list[Source], settings: Settings, output_dir: Path, arguments: argparse.Namespace
) -> Iterator[Progress | Done]:
    """Return what happens while videos are prepared, by this machine's processes or by Ray."""
    if arguments.executor == "ray":
        address, most = arguments.ray_address, arguments.num_workers
        return run_on_ray(todo, settings, output_dir, address=address, most_tasks=most)
    num_workers = arguments.num_workers or min(MAX_WORKERS, os.cpu_count() or 1)
    return run_workers(todo, settings, output_dir, num_workers=min(num_workers, max(1, len(todo))))


def split_finished(
    sources: list[Source], settings: Settings, output_dir: Path, *, tell: bool = True
) -> tuple[list[Source], int, list[DataError]]:
    """Return (videos to prepare, samples made before, faults of samples made in another way)."""
    todo, num_finished, faults = [], 0, []
    for source in sources:
        try:
            finished, num_pieces = finished_pieces(source, settings, output_dir)
        except DataError as fault:
            faults.append(fault)
            continue
        num_finished += len(finished)
        if num_pieces is not None and len(finished) == num_pieces:
            made = source.name if num_pieces == 1 else f"{num_pieces} samples"
            if tell:
                print(f"{source.path.name}: done already ({made}), skipped")
        else:
            todo.append(source)
    return todo, num_finished, faults


def run(
    events: Iterator[Progress | Done], sources: list[Source]
) -> tuple[list[VideoResult], list[DataError], DataError | ConfigError | None]:
    """Prepare videos under a progress bar. events: what happens while that is done.

    Return (what became of them, the faults of those that failed, a fault that ended the run or None).
    """
    results, faults = [], []
    left = {source: float(estimate_frames(source.path)) for source in sources}
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {rate_fmt}"
    interval = 0.2 if sys.stderr.isatty() else 10
    with (
        contextlib.closing(events),
        tqdm(total=sum(left.values()), desc=f"0 of {len(sources)} videos", unit=" frames",
             bar_format=bar_format, mininterval=interval, smoothing=0.02, disable=not sources) as bar,
    ):  # fmt: skip
        for event in events:
            if not isinstance(event, Done):
                step = min(event.num_frames, left[event.source])
            else:
                step = left[event.source]
                if event.is_fatal:
                    return results, faults, event.fault
                if event.fault is not None:
                    faults.append(event.fault)
                    bar.write(f"{event.source.path.name}: failed, see below")
                if event.result is not None:
                    results.append(event.result)
                    bar.write("\n".join(report_lines(event.result)))
                num_done = len(results) + len(faults)
                bar.set_description_str(f"{num_done} of {len(sources)} videos", refresh=False)
            left[event.source] -= step
            bar.update(step)
    return results, faults, None


def report_lines(result: VideoResult) -> list[str]:
    """Return what the user reads of one video."""
    name, samples = result.file_name, result.samples
    if not samples and not result.faults:  # by a process that died when all was done
        return [f"{name}: done already", *(f"  {note}" for note in result.notes)]
    if not samples:
        return [f"{name}: failed, see below", *(f"  {note}" for note in result.notes)]
    lines = [f"{name} -> {samples[0]}"]
    if len(samples) > 1:
        lines = [f"{name} -> {len(samples)} samples", *(f"  {line}" for line in samples)]
    warnings = [note for note in result.notes if "warning: " in note]
    notes = [f"  note: {note}" for note in result.notes if note not in warnings]
    return [*lines, *(f"  {note}" for note in warnings), *notes]


def print_faults(faults: list[DataError]) -> None:
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)


def print_next_commands(output_dir: Path, num_features: int | None) -> None:
    """Say how many features one row of music has, and how to go on."""
    if num_features is None:
        return
    channels = f"--guidance_types music pose --guidance_input_channels {num_features} {NUM_POINTS}"
    flags = f"--train_data_dir {shlex.quote(str(output_dir))} {channels}"
    print(
        f"music has {num_features} features per frame, a pose {NUM_POINTS} points. Check the data, train:\n"
        f"    python train_guidance.py {flags} --check_data\n"
        f"    bash command_train_guidance.sh {flags}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ---- The command line ----


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags. Defaults of what shapes a sample are those of Settings."""
    parser = Parser(
        prog="prepare_guidance.py", description=__doc__.split("\n")[0],
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
    )  # fmt: skip
    add = parser.add_argument
    # fmt: off
    estimators, features = ", ".join(pose_estimator_names()), ", ".join(music_feature_names())
    models = " and ".join(dwpose.MODEL_NAMES)
    add("--input_dir", required=True, metavar="DIR", help="folder of videos: mp4 avi mov mkv webm and others")
    add("--output_dir", required=True, metavar="DIR", help="the data folder to make, or to add to")
    add("--resolution", type=number(int, 0), default=512, metavar="N",
        help="scale the shorter side down to N pixels, never up; 0: keep the size (default: 512)")
    add("--music_file", metavar="FILE", help="sound to take instead of the video's own; for a single video")
    add("--music_features", default="aist35", metavar="NAME",
        help=f"{features}, or your own MODULE:FUNCTION (default: aist35)")
    add("--pose_estimator", default="mediapipe", metavar="NAME",
        help=f"{estimators}, or your own MODULE:NAME (default: mediapipe)")
    add("--pose_format", choices=("json", "npy"), default="json",
        help="poses as one JSON file per frame, or as one .npy file per video (default: json)")
    add("--pose_stride", type=number(int, 1), default=1, metavar="N",
        help="estimate the pose of every N-th frame, and interpolate between them (default: 1)")
    add("--dwpose_dir", metavar="DIR", help=f"folder with DWPose's {models}")
    add("--max_seconds", type=number(float, 0), default=30.0, metavar="S",
        help="divide scenes that are longer; 0: never (default: 30)")
    add("--min_seconds", type=number(float, 0), default=1.0, metavar="S",
        help="leave out pieces that are shorter (default: 1)")
    add("--no_scene_cuts", action="store_true", help="do not cut videos where the scene changes")
    add("--num_workers", type=number(int, 1), metavar="N",
        help=f"processes, one video each at a time (default: one per CPU core, at most {MAX_WORKERS}; "
        "with Ray as many as there is room for)")
    add("--shard", metavar="I/N",
        help="prepare part I of N only, from 1/N to N/N: a share of the videos, by their names")
    add("--merge", action="store_true", help="say which videos the parts have left out, and why")
    add("--executor", choices=("local", "ray"), default="local",
        help="who prepares: this machine's processes, or the machines of a Ray cluster (default: local)")
    add("--ray_address", metavar="ADDRESS",
        help="of the cluster, or auto for the one that this machine is in (default: Ray on this machine)")
    # fmt: on
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed flags. Raises ConfigError."""
    arguments = build_parser().parse_args(argv)
    for name in ("input_dir", "output_dir"):
        if not getattr(arguments, name).strip():  # a shell variable that is not set
            raise ConfigError(f"--{name} is empty: name a folder")
    if 0 < arguments.resolution < MIN_RESOLUTION:
        expected = f"at least {MIN_RESOLUTION}, or 0 to keep the size"
        raise ConfigError(f"--resolution {arguments.resolution}: {expected}")
    longest, shortest = arguments.max_seconds, arguments.min_seconds
    if 0 < longest < shortest:
        problem = f"--max_seconds {longest:g} is less than --min_seconds {shortest:g}"
        raise ConfigError(f"{problem}: nothing would be left")
    if (arguments.pose_estimator == "dwpose") != (arguments.dwpose_dir is not None):
        raise ConfigError("--pose_estimator dwpose and --dwpose_dir go together")
    arguments.shard = None if arguments.shard is None else Part.parse(arguments.shard)
    if arguments.merge and arguments.shard is not None:
        raise ConfigError("--merge is for all parts, --shard for one: give one of them")
    if arguments.ray_address is not None and arguments.executor != "ray":
        raise ConfigError("--ray_address needs --executor ray")
    return arguments


def make_settings(arguments: argparse.Namespace) -> Settings:
    """Return what shapes a sample."""
    shared = {field.name for field in dataclasses.fields(Settings)} & vars(arguments).keys()
    values = {name: getattr(arguments, name) for name in shared}
    return Settings(**values, scene_cuts=not arguments.no_scene_cuts)


if __name__ == "__main__":
    sys.exit(main())
