"""How long does a step of the demo take alone, and beside a busy process? By the policy of waiting threads.

    python -m benchmarks.step.waiting --data_dir demo_data --repeats 2

Protocol. Every policy trains in a process of its own, by the ordinary command line, with as many threads as
PyTorch takes: two steps that do not count, steps alone, then a Python loop is started that does nothing else,
a step during which it came, and steps beside it. The --loss tells the time of each step and adds nothing.
Repeat 1 of all policies comes before repeat 2 of any. One line of JSON per policy and repeat; medians.
"""

import system.waiting  # before torch is loaded

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TIMES_PATH = "WAITING_TIMES_PATH"  # names the file of the steps' times to the training
POLICIES = {
    "runtime": {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},  # the runtimes' own defaults
    "ours": system.waiting.POLICY,
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
NUM_WARMUP_STEPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("demo_data"), help="what demo/data.py writes")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--steps", nargs=2, type=int, default=[6, 3], help="alone, and beside a busy process")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    for repeat in range(arguments.repeats):
        for policy in arguments.policies:
            alone, busy = time_steps(arguments.data_dir.resolve(), POLICIES[policy], *arguments.steps)
            medians = {"alone_seconds": statistics.median(alone), "busy_seconds": statistics.median(busy)}
            row = {"policy": policy, "repeat": repeat, **medians, "alone": alone, "busy": busy}
            print(json.dumps(row), flush=True)


def time_steps(data_dir: Path, policy: dict[str, str], num_alone: int, num_busy: int) -> tuple[list, list]:
    """Return the seconds of each step alone, and beside a busy process."""
    with tempfile.TemporaryDirectory() as work_dir, training(data_dir, Path(work_dir), policy) as next_times:
        next_times(NUM_WARMUP_STEPS)
        alone = next_times(num_alone + 1)
        with running([sys.executable, "-c", "while True: pass"]):
            next_times(1)
            busy = next_times(num_busy + 1)
    return [[round(end - start, 3) for start, end in pairwise(times)] for times in (alone, busy)]


@contextmanager
def training(data_dir: Path, work_dir: Path, policy: dict[str, str]):
    """Train the demo; yield the function that waits for the next `count` times of a step and returns them."""
    flags = {
        "config": "configs/demo.yaml", "train_data_dir": data_dir / "train", "output_dir": work_dir / "out",
        "validation_data_dir": data_dir / "validation", "logging_dir": work_dir / "logs",
        "loss": "benchmarks.step.waiting:tell_time",
    }  # fmt: skip
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    kept = {name: value for name, value in os.environ.items() if name not in system.waiting.CHOSEN_BY_USER}
    times_path = work_dir / "times"
    times_path.touch()
    environment = kept | policy | {TIMES_PATH: str(times_path)}
    command = [sys.executable, "train_guidance.py", *words]
    with running(command, environment) as process, times_path.open(encoding="utf-8") as told:

        def next_times(count: int) -> list[float]:
            times = []
            while len(times) < count:
                if line := told.readline():
                    times.append(float(line))
                elif process.poll() is not None:
                    raise SystemExit("error: the training ended")
                else:
                    time.sleep(0.05)
            return times

        yield next_times


@contextmanager
def running(command: list[str], environment: dict[str, str] | None = None):
    """Run a command while the block runs; yield its process."""
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def tell_time(model_pred, target, guidance_condition):
    """Return nothing to add to the loss; write what time it is."""
    with open(os.environ[TIMES_PATH], "a", encoding="utf-8") as times:
        times.write(f"{time.perf_counter()}\n")
    return 0.0 * model_pred.sum()


if __name__ == "__main__":
    main()
