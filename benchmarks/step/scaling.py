"""What a training step costs as clips grow: over frames, resolution, batch and processes.

    python benchmarks/step/scaling.py --size small --json scaling.json --plot scaling.png
    python benchmarks/step/scaling.py --size sd15 --device cuda --json scaling.json --plot scaling.png

Protocol. Every point is a process of its own (several where processes are the series), which trains a warm-up
step and then --steps that are timed, with nothing cached: the VAE and the image encoder belong to the step.
All series start at the size's own point and change one thing. Weights are random; the networks of a point
differ in nothing but the shape of their clips. Seconds are of a step without the reading of clips; CPU
seconds those of one process. Memory is the peak of one process: on a GPU what PyTorch has allocated, on a CPU
what the process holds above Python and its packages. Beside it stands what --dry_run says for the same step.
On a CPU glibc is told to return memory at once (MALLOC_MMAP_THRESHOLD_), so that a process holds what its
tensors hold; otherwise it keeps a fifth more and, where little is held at all, two thirds more.
Several processes talk by gloo on a CPU, by NCCL on GPUs, one GPU each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import system.waiting  # noqa: E402  (before torch is loaded)

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.step.scaling_report import draw_plot, table_lines  # noqa: E402
from benchmarks.step.sizes import SIZES, STAGES  # noqa: E402
from benchmarks.train_step import row_of_process, run, write_data  # noqa: E402

SCRIPT = Path(__file__).resolve().parent / "our_step.py"
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "MALLOC_MMAP_THRESHOLD_": "65536"}
SERIES = {
    "num_frames": (8, 16, 24, 32),
    "resolution": (256, 384, 512, 768),
    "batch_size": (1, 2, 4),
    "processes": (1, 2, 4, 8),
}


def list_points(arguments) -> list[dict]:
    """Return {num_frames, resolution, batch_size, processes} of every point, the common one first."""
    size = SIZES[arguments.size]
    batch_size, num_frames = size.batch_shape(arguments.stage)
    base = {"num_frames": num_frames, "resolution": size.resolution, "batch_size": batch_size, "processes": 1}
    points = [base]
    for name in arguments.series:
        for value in SERIES[name]:
            if name == "processes" and value > most_processes(arguments.device):
                continue
            if name == "num_frames" and arguments.stage == "image":
                continue  # single frames
            point = base | {name: value}
            if point not in points:
                points.append(point)
    return points


def most_processes(device: str) -> int:
    return torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1


def run_point(point: dict, arguments, work_dir: Path) -> dict:
    """Return the row of a point; {"error": its last line} where it failed."""
    shape = {name: point[name] for name in ("batch_size", "num_frames", "resolution")}
    spec = {
        "size": arguments.size, "stage": arguments.stage, "shape": shape, "device": arguments.device,
        "settings": dict(SIZES[arguments.size].settings), "work_dir": str(work_dir), "warmup_steps": 1,
        "steps": arguments.steps, "batch_size": point["batch_size"], "simulate": True,
    }  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={point['processes']}"]
    if point["processes"] == 1:
        launcher = []
    command = [sys.executable, *launcher, str(SCRIPT)]
    row = row_of_process(command, spec, work_dir, ON_CPU if arguments.device == "cpu" else {})
    if "error" in row:
        return point | row
    clips = point["batch_size"] * point["processes"]
    held_gb = row["peak_memory_gb"] - row.get("packages_gb", 0.0)
    return {**point, **row, "samples_per_second": clips / row["step_seconds"], "held_gb": held_gb}


def measure(arguments, work_dir: Path) -> dict:
    """Run all points; the JSON file is written anew after each, so that a stop keeps what there is."""
    size, points = SIZES[arguments.size], list_points(arguments)
    longest = max(point["num_frames"] for point in points)
    write_data(size.reshaped(batch_size=1, num_frames=longest, resolution=size.resolution), work_dir / "data")
    result = {"size": arguments.size, "stage": arguments.stage, "device": arguments.device, "rows": []}
    for point in (bar := tqdm(points, desc="points", unit="point")):
        bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in point.items()))
        result["rows"].append(run_point(point, arguments, work_dir))
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--stage", choices=STAGES, default="motion")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--steps", type=int, default=1, help="timed steps of a process")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, required=True, help="where to write the rows")
    parser.add_argument("--plot", type=Path, help="where to draw them (.png)")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error("--steps must be at least 1")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 2 cannot run here, 1 a point failed."""
    arguments = parse(argv)
    checked = argparse.Namespace(champ_repo=None, champ_python=None, **vars(arguments))
    return run(arguments, checked, measure, table_lines, draw_plot)


if __name__ == "__main__":
    sys.exit(main())
