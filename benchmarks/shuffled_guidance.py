"""A data folder in which one guidance type belongs to other videos: what a gap near zero looks like.

    python benchmarks/shuffled_guidance.py --data_dir demo_data/train --output_dir shuffled
    python train_guidance.py --config configs/demo.yaml --train_data_dir shuffled --output_dir shuffled_output

A model trained on it cannot learn the type, whatever its loss curve says; `guidance_gap/music` on the true
validation data has to stay near zero, and the run has to say so. All other files are links to the originals.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import system.waiting  # noqa: E402  (before torch is loaded)

from datasets.guidance.tracks import TYPE_FOLDERS  # noqa: E402


def shuffle_guidance(data_dir: Path, output_dir: Path, guidance_type: str, seed: int = 0) -> dict[str, str]:
    """Write the folder; return which sample's guidance each sample got, never its own. Needs two samples."""
    folder = TYPE_FOLDERS.get(guidance_type, guidance_type)
    entries = sorted(path for path in (data_dir / folder).iterdir() if path.name != "meta.json")
    if len(entries) < 2:
        raise ValueError(f"{data_dir / folder}: {len(entries)} samples; shuffling needs two")
    output_dir.mkdir(parents=True)
    for path in data_dir.iterdir():
        if path.name != folder:
            (output_dir / path.name).symlink_to(path.resolve())
    (output_dir / folder).mkdir()
    if (data_dir / folder / "meta.json").is_file():
        (output_dir / folder / "meta.json").symlink_to((data_dir / folder / "meta.json").resolve())
    order = random.Random(seed).sample(entries, len(entries))
    for path, other in zip(order, [*order[1:], order[0]], strict=True):  # one circle: none gets its own
        (output_dir / folder / path.name).symlink_to(other.resolve())
    return {path.stem: other.stem for path, other in zip(order, [*order[1:], order[0]], strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--guidance_type", default="music")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    given = shuffle_guidance(
        arguments.data_dir, arguments.output_dir, arguments.guidance_type, arguments.seed
    )
    print(f"{arguments.output_dir}: {len(given)} samples with another one's {arguments.guidance_type}")


if __name__ == "__main__":
    main()
