"""Does music make the dance? Tracks of a music-to-pose model beside the true ones, with floors.

    python benchmarks/music_to_pose.py demo --model_path OUT/final [more final/ folders] --json demo.json
    python benchmarks/music_to_pose.py real --model_path OUT/final --train_data_dir TRAIN \\
        --validation_data_dir HELD_OUT --kind "tang2018_(.)" --json real.json

Metrics of motion are those of `evaluation/metrics/motion.py`, in torso lengths of the true dancer. What
is measured, and how, stands at the top of `dances/drawn.py` and `dances/real.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import system.waiting  # noqa: E402  (before torch is loaded)

import numpy as np  # noqa: E402

from benchmarks.dances.drawn import DemoClip, measure_demo  # noqa: E402
from benchmarks.dances.models import Model  # noqa: E402
from benchmarks.dances.real import measure_real  # noqa: E402
from demo.data import NUM_FRAMES  # noqa: E402


def show(found: dict, indent: int = 0) -> None:
    """Print nested figures, one line each."""
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{name}")
            show(value, indent + 2)
        else:
            numbers = " ".join(f"{one:9.3f}" for one in np.atleast_1d(value))
            print(f"{' ' * indent}{name:28} {numbers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    demo, real = parts.add_parser("demo"), parts.add_parser("real")
    for part in (demo, real):
        part.add_argument("--model_path", type=Path, nargs="+", required=True)
        part.add_argument("--num_inference_steps", type=int, default=25)
        part.add_argument("--guidance_scale", type=float, default=1.0)
        part.add_argument("--device", default="cpu")
        part.add_argument("--json", type=Path)
    demo.add_argument("--num_clips", type=int, default=24)
    demo.add_argument("--num_frames", type=int, default=NUM_FRAMES)
    demo.add_argument("--long_seconds", type=float, nargs="*", default=[13.5, 180.0], help="ascending")
    demo.add_argument("--num_long", type=int, default=4, help="songs of each length")
    real.add_argument("--train_data_dir", type=Path, required=True)
    real.add_argument("--validation_data_dir", type=Path, required=True)
    real.add_argument("--kind", default="()", help="regular expression; its first group names a dance")
    real.add_argument("--num_windows", type=int, default=64, help="of the gaps")
    real.add_argument("--num_training_takes", type=int, default=0)
    arguments = parser.parse_args()
    results = {}
    if arguments.part == "demo":
        clips = [DemoClip(number, arguments.num_frames) for number in range(arguments.num_clips)]
    for path in arguments.model_path:
        model = Model(path, arguments)
        is_demo = arguments.part == "demo"
        found = measure_demo(model, clips, arguments) if is_demo else measure_real(model, arguments)
        results[str(path)] = found
        print(path)
        show(found, 2)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
