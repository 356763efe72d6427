"""How well the dancers of a data folder keep the beat: what a gain of true dances looks like.

    python benchmarks/dances/beat_gains.py --data_dir DATA --num_key_points 18 \\
        --kind "motorica_g(..)" --every 1 2 3

Reads poses/ and metadata/NAME.json (beat_seconds, frame_rate), no videos. One row per kind of dance, the
first group of --kind in a sample's name, and per --every N, which leaves every N-th frame of the motion: the
whole takes, and the mean over clips of --clip_seconds with its interval.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import system.waiting  # noqa: E402  (before torch is loaded)

import numpy as np  # noqa: E402

from datasets.data_folder import read_metadata, type_dir  # noqa: E402
from datasets.guidance.track import META_NAME  # noqa: E402
from datasets.guidance.tracks import read_pose_folder  # noqa: E402
from evaluation.confidence import bootstrap_interval  # noqa: E402
from evaluation.metrics.music import (  # noqa: E402
    beat_alignment_gain,
    beat_coverage,
    motion_beats,
    music_beats,
)

Take = tuple[np.ndarray, float, np.ndarray]  # key points, their rate, seconds of the music's beats


def read_takes(arguments: argparse.Namespace) -> dict[str, list[Take]]:
    """Return the takes of each kind of dance."""
    takes = defaultdict(list)
    for path in sorted(type_dir(arguments.data_dir, "pose").iterdir()):
        found, metadata = re.match(arguments.kind, path.stem), read_metadata(arguments.data_dir, path.stem)
        if found and path.name != META_NAME:
            points = read_pose_folder(path, arguments.num_key_points)
            points[..., :2] *= metadata.get("size", (1, 1))[::-1]  # of the video, height first
            takes[found[1]].append((points, metadata["frame_rate"], music_beats(metadata=metadata)))
    return takes


def measure(take: Take, every: int = 1) -> tuple[float, ...]:
    """Return score, score of shifted music, gain, share of the shifts beaten, coverage."""
    points, frame_rate, music = take
    duration = len(points) / frame_rate
    motion = motion_beats(points[::every], frame_rate / every)
    found = beat_alignment_gain(motion, music, duration, num_shifts=200)
    return *found, beat_coverage(motion, music, duration)


def clips(take: Take, seconds: float) -> list[Take]:
    """Return the take cut into clips of so many seconds; what is left over is dropped."""
    points, frame_rate, music = take
    length = round(seconds * frame_rate)
    starts = range(0, len(points) - length + 1, length)
    return [(points[s : s + length], frame_rate, music - s / frame_rate) for s in starts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--num_key_points", type=int, default=134)
    parser.add_argument("--kind", default="(.*)", help="regular expression; its first group names the kind")
    parser.add_argument("--clip_seconds", type=float, default=12)
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="leave only every N-th frame")
    arguments = parser.parse_args()
    print("| kind, frames per second | takes, minutes | score | shifted | gain | beaten | coverage "
          f"| gain of clips of {arguments.clip_seconds:g} s, 95 % |\n|" + "---|" * 8)  # fmt: skip
    for kind, takes in read_takes(arguments).items():
        minutes = sum(len(points) / frame_rate for points, frame_rate, _ in takes) / 60
        pieces = [piece for take in takes for piece in clips(take, arguments.clip_seconds)]
        for every in arguments.every:
            score, shifted, gain, beaten, coverage = np.mean([measure(take, every) for take in takes], axis=0)
            gains = [measure(piece, every)[2] for piece in pieces]
            low, high = bootstrap_interval(gains)
            print(f"| {kind}, {takes[0][1] / every:g} | {len(takes)}, {minutes:.1f} | {score:.3f} "
                  f"| {shifted:.3f} | {gain:+.3f} | {beaten:.2f} | {coverage:.2f} "
                  f"| {np.mean(gains):+.3f} ({low:+.3f} to {high:+.3f}), {len(gains)} clips |")  # fmt: skip


if __name__ == "__main__":
    main()
