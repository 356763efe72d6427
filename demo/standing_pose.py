"""Write the pose in which a demo dancer stands in the reference image: a dance to a song begins from it.

python -m demo.standing_pose --sample validation_00000 --output standing_pose.json
"""

import system.waiting  # before torch is loaded

import argparse
import json
import sys
from pathlib import Path

from system.command_line import Parser, run_main

from .dancer import key_points, standing
from .data import RESOLUTION, sample_scene


def write_standing_pose(sample: str, output: Path) -> None:
    """Write one pose file of the documented layout."""
    dancer = sample_scene(sample).dancer
    points = key_points(dancer, standing(dancer)).round(4).tolist()
    frame = {"coordinates": "normalized", "width": RESOLUTION, "height": RESOLUTION}
    pose = {"keypoints": points, "pose_type": "dance", "frame_id": 0, **frame}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(pose), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sample", required=True, help="name of a demo sample")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return run_main(parser.prog, lambda: write_standing_pose(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
