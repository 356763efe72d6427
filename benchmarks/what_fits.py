"""What fits on a GPU of 8 to 80 GB? Steps at Stable Diffusion 1.5's size, simulated without a GPU.

    python benchmarks/what_fits.py --json fits.json [--lora_rank 16]

Protocol. The networks of the step benchmark's sd15 size without weights, bf16, latents from the cache, AdamW
in 8 bits where both UNets train whole; four guidance types of image maps. For every stage, checkpointing
level and resolution two steps are simulated as on a GPU, with few and with many frames (image stage: images).
In between, a peak of memory is at most what lies on the line between them: it is the largest of several sums,
each linear in the number of frames. A step fits where its tensors and a tenth more (what CUDA's allocator
cannot use) leave 1 GiB for CUDA's context and its libraries. With --lora_rank
adapters train, of --lora_parts or of what train_guidance.py gives a stage, on weights in bf16.
No GPU has confirmed these figures.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import system.waiting  # noqa: E402  (before torch is loaded)

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.step.our_step import make_task, shapes_of_batch, training_arguments  # noqa: E402
from benchmarks.step.sizes import SIZES, STAGES, size_of  # noqa: E402
from models.lora import LORA_PARTS  # noqa: E402
from training.planning.step_simulation import MemoryUse, simulate_step  # noqa: E402
from training.settings.fields import FLAGS, MAX_MOTION_FRAMES  # noqa: E402

GIB = 2**30
CARDS = (8, 12, 16, 24, 40, 80)  # GiB
CONTEXT_BYTES, UNUSABLE = GIB, 0.1
LEVELS = FLAGS["gradient_checkpointing"].metadata["choices"]
COUNTS = {"image": (1, 16), "joint": (8, MAX_MOTION_FRAMES), "motion": (8, MAX_MOTION_FRAMES)}


def simulate(size: str, stage: str, resolution: int, count: int, settings: dict) -> MemoryUse:
    """Return what a step takes: `count` frames of a clip, or in the image stage as many images."""
    batch_size, num_frames = (count, 1) if stage == "image" else (1, count)
    spec = {
        "size": size, "stage": stage, "work_dir": ".",
        "shape": {"batch_size": batch_size, "num_frames": num_frames, "resolution": resolution},
        "settings": {
            "mixed_precision": "bf16", "cache_latents": True,
            "use_8bit_adam": stage != "motion" and "lora_rank" not in settings, **settings,
        },
    }  # fmt: skip
    arguments, shape, nowhere = training_arguments(spec), size_of(spec), torch.device("meta")
    task = make_task(shape, arguments, nowhere)
    return simulate_step(task, shapes_of_batch(shape, arguments), device=torch.device("cpu"), as_gpu=True)


def most_that_fits(card: int, few: tuple[int, float], many: tuple[int, float]) -> int:
    """Return the largest count that fits, from two steps (count, bytes); 0 where not even few does."""
    room = (card * GIB - CONTEXT_BYTES) / (1 + UNUSABLE)
    (low, low_bytes), (high, high_bytes) = few, many
    if low_bytes > room:
        return 0
    a_frame = (high_bytes - low_bytes) / (high - low)
    return min(high, low + math.floor((room - low_bytes) / a_frame))


def measure(arguments: argparse.Namespace) -> list[dict]:
    rows, more = [], {"cache_features": True} if arguments.cache_features else {}
    if arguments.lora_rank is not None:
        more |= {"lora_rank": arguments.lora_rank, "lora_parts": arguments.lora_parts}
    cases = [
        (stage, level, resolution)
        for stage in arguments.stage
        for level in arguments.gradient_checkpointing
        for resolution in arguments.resolution
    ]
    for stage, level, resolution in tqdm(cases, unit="case"):
        settings = {"gradient_checkpointing": level, **more}
        few, many = (
            (count, simulate(arguments.size, stage, resolution, count, settings)) for count in COUNTS[stage]
        )
        rows.append({
            "stage": stage, "resolution": resolution, **settings,
            "gib": {count: use.total / GIB for count, use in (few, many)},
            "weights_gib": few[1].weights / GIB, "optimizer_gib": few[1].optimizer / GIB,
            "peak_in": many[1].phase,
            "fits": {
                card: most_that_fits(card, (few[0], few[1].total), (many[0], many[1].total))
                for card in CARDS
            },
        })  # fmt: skip
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return rows


def table_lines(rows: list[dict]) -> list[str]:
    """Return a Markdown table; "-" where not even the fewest frames fit, + where the most frames do."""
    cards = " | ".join(f"{card} GB" for card in CARDS)
    lines = [f"| stage | --gradient_checkpointing | resolution | {cards} |", "|" + "---|" * (3 + len(CARDS))]
    for row in rows:
        level, most = row["gradient_checkpointing"], COUNTS[row["stage"]][1]
        counts = [
            "-" if count == 0 else f"{count}{'+' * (count == most and row['stage'] == 'image')}"
            for count in row["fits"].values()
        ]
        lines.append(f"| {row['stage']} | {level} | {row['resolution']} | {' | '.join(counts)} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="sd15")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=["motion", "joint", "image"])
    parser.add_argument("--resolution", nargs="+", type=int, default=[512, 768])
    parser.add_argument("--gradient_checkpointing", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument("--lora_rank", type=int, help="of adapters (default: all that a stage trains, whole)")
    parser.add_argument("--lora_parts", nargs="+", choices=LORA_PARTS, default=[])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--cache_features", action="store_true", help="as train_guidance.py; --stage motion")
    arguments = parser.parse_args(argv)
    if arguments.cache_features and arguments.stage != ["motion"]:
        parser.error("--cache_features is for --stage motion alone")
    rows = measure(arguments)
    print("\n".join(table_lines(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
