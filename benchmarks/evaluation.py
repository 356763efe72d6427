"""What do the metrics of pixels and of time cost, and does memory grow with the length of a video?

    python benchmarks/evaluation.py --seconds 12 --size 512
    python benchmarks/evaluation.py --seconds 600 --size 64

Protocol. A made-up dancer of 134 key points before a textured stage, 30 frames per second, and a prediction
that is blurred and noisy, are painted in chunks of 16 frames; nothing is read or decoded, and the painting is
not counted. Each metric measures the chunk; those of neighbouring frames get the last frame before it as
well. Printed are the CPU seconds of all threads, per metric and per frame, and the process's memory after
the first 12 seconds of video and its most after that (Linux: resident; elsewhere its peak).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import system.waiting  # noqa: E402  (before torch is loaded)

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from evaluation import measuring  # noqa: E402
from evaluation.clips.pairs import Chunk  # noqa: E402

FRAME_RATE, CHUNK_FRAMES, NUM_POINTS = 30, 16, 134
FIRST_SECONDS = 12
METRICS = (
    "psnr", "ssim", "l1", "psnr_legacy", "ssim_legacy", "l1_legacy", "hand_psnr", "face_psnr", "dtssd",
    "background_flicker", "frame_jumps",
)  # fmt: skip


def works_of(chunk: tuple, num_old: int) -> dict[str, Callable[[], np.ndarray]]:
    """Return {metric: the call on this chunk}, whose first num_old frames are those of the chunk before."""
    works = measuring.works_of(Chunk(*chunk, num_old, first=0), pair=None, tools=measuring.Tools())
    return {name: works[name] for name in METRICS if name in works}


def paint(num_frames: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (prediction, truth, key points) of CHUNK_FRAMES frames at a time."""
    rng = np.random.default_rng(0)
    stage = cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), np.uint8), (0, 0), 3)
    noise = rng.integers(0, 12, (size, size, 3), np.uint8)
    body = np.concatenate([rng.uniform(-0.2, 0.2, (NUM_POINTS, 2)), np.ones((NUM_POINTS, 1))], axis=1)
    for part, width in ((slice(24, 92), 0.06), (slice(92, 113), 0.04), (slice(113, 134), 0.04)):
        body[part, :2] = body[part.start, :2] + rng.uniform(-width, width, (part.stop - part.start, 2))
    for start in range(0, num_frames, CHUNK_FRAMES):
        numbers = np.arange(start, min(start + CHUNK_FRAMES, num_frames))
        points = np.repeat(body[None], len(numbers), axis=0)
        points[..., 0] += 0.5 + 0.1 * np.sin(numbers / 9)[:, None]
        points[..., 1] += 0.5
        points[..., :2] *= size
        truth = np.repeat(stage[None], len(numbers), axis=0)
        for frame, place in zip(truth, points[:, 0, :2].astype(int).tolist(), strict=True):
            cv2.circle(frame, place, size // 5, (230, 180, 60), cv2.FILLED)
        prediction = np.stack([cv2.blur(frame, (3, 3)) for frame in truth])
        for number, frame in zip(numbers, prediction, strict=True):
            cv2.add(frame, np.roll(noise, 5 * int(number), axis=0), dst=frame)
        yield prediction, truth, points


def memory_mib() -> float:
    """Return this process's memory: what is resident now, where Linux tells, else its peak."""
    status = Path("/proc/self/status")
    if status.exists():
        resident = next(line for line in status.read_text(encoding="utf-8").splitlines() if "VmRSS" in line)
        return int(resident.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure(seconds: float, size: int) -> dict:
    """Return each metric's CPU seconds and mean, and the memory after FIRST_SECONDS and its most later."""
    num_frames, first_frames = round(seconds * FRAME_RATE), FIRST_SECONDS * FRAME_RATE
    spent, sums, counts, last, memory, num_done = Counter(), Counter(), Counter(), None, {}, 0
    for new in paint(num_frames, size):
        num_old = 0 if last is None else 1
        chunk = new if last is None else [np.concatenate(pair) for pair in zip(last, new, strict=True)]
        for name, work in works_of(chunk, num_old).items():
            start = time.process_time()
            values = work()
            spent[name] += time.process_time() - start
            sums[name] += float(values.sum())
            counts[name] += len(values)
        last = [array[-1:].copy() for array in new]
        num_done += len(new[0])
        if num_done >= first_frames or num_done == num_frames:
            memory.setdefault("first_mib", memory_mib())
            memory["last_mib"] = max(memory_mib(), memory.get("last_mib", 0))
    return {
        "frames": num_frames, "size": size, "cpu_seconds": sum(spent.values()), **memory,
        "metrics": {
            name: {"cpu_seconds": spent[name], "value": sums[name] / max(1, counts[name])} for name in spent
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.seconds, arguments.size)
    print(f"{found['frames']} frames of {found['size']} x {found['size']}")
    for name, row in found["metrics"].items():
        per_frame = 1000 * row["cpu_seconds"] / found["frames"]
        print(f"{name:20} {row['cpu_seconds']:8.2f} s {per_frame:8.3f} ms per frame  mean {row['value']:.4g}")
    print(f"{'together':20} {found['cpu_seconds']:8.2f} CPU seconds")
    first, last = found["first_mib"], found["last_mib"]
    print(f"memory {first:.0f} MiB after {FIRST_SECONDS} s of video, at most {last:.0f} MiB later")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
