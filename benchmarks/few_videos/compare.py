"""Three short videos of one new dancer: what fine-tuning learns of her, and what it forgets of others.

    python benchmarks/few_videos/compare.py --work_dir few_videos [--runs none full_1 ...]

Protocol. A drawn dancer whom the demo's model has never seen (data.py): three training videos of 40 frames,
three videos to other songs for the curves, eight for the figures. Each run starts from the demo's model: `none`
is that model as it is, `full_S` trains all of it for 100 steps of one clip with seed S, `lora_S` adapters
alone, `*_long` 300 steps, `*_prior` with as many of the demo's own training videos as of the dancer's. Then
`evaluate_guidance.py` samples frames 8 to 15 of the dancer's eight videos and of the demo's first held-out
dancers, with one noise per clip. Silhouettes are those of `demo_quality.py`, of the written videos. The
reference gap is that of the validation, the reference image taken from another dancer. A figure of three
seeds is the mean over seeds of each clip, its interval 95 % over clips; differences are paired with `none`.
Runs that are finished stay as they are: what has its `result.json` is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import system.waiting  # noqa: E402  (before torch is loaded)

import evaluate_guidance  # noqa: E402
import train_guidance  # noqa: E402
from benchmarks.few_videos import curves, figures  # noqa: E402
from benchmarks.few_videos.data import NUM_VIDEOS, make_videos, with_prior  # noqa: E402

SEEDS = (1, 2, 3)
STEPS, LONG = 100, 300
SHARED = [
    "--config", "configs/demo.yaml", "--train_batch_size", "1", "--lr_scheduler", "constant",
    "--lr_warmup_steps", "10", "--pretrained_lr_scale", "1", "--num_workers", "0", "--cache_latents",
    "--validation_steps", "25", "--num_validation_clips", "1", "--num_inference_steps", "4",
    "--checkpointing_steps", "100", "--guidance_modules", "benchmarks/few_videos/curves.py",
]  # fmt: skip
METHODS = {
    "none": None,
    "full": ["--learning_rate", "2e-4"],
    "lora": ["--learning_rate", "2e-3", "--lora_rank", "8"],
}
SAMPLING = [
    "--start_frame", "8", "--num_frames", "8", "--num_inference_steps", "10", "--guidance_scale", "2",
    "--guidance_interval", "0.4", "8", "--seed", "0", "--floors", "--pose_estimator", "none",
    "--metrics", "psnr", "ssim", "hand_psnr", "face_psnr",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run: how it trains, with which seed, for how long, on what."""

    method: str
    seed: int = 0
    steps: int = STEPS
    prior: bool = False
    flags: tuple[str, ...] = field(default=())

    @property
    def is_adapter(self) -> bool:
        return self.method == "lora"


def cases() -> dict[str, Case]:
    found = {"none": Case("none")}
    for method in ("full", "lora"):
        found |= {f"{method}_{seed}": Case(method, seed) for seed in SEEDS}
        found[f"{method}_long"] = Case(method, SEEDS[0], LONG)
        found[f"{method}_prior"] = Case(method, SEEDS[0], prior=True)
    # The search of the learning rates, on the curves alone.
    found["full_slower"] = Case("full", SEEDS[0], flags=("--learning_rate", "5e-5"))
    found["lora_slower"] = Case("lora", SEEDS[0], flags=("--learning_rate", "5e-4"))
    return found


def run_script(main: Callable, *flags: str | Path) -> None:
    """Run one of the project's scripts in this process. Raises SystemExit where it fails."""
    code = main([*map(str, flags)])
    if code:
        raise SystemExit(code)


class Comparison:
    """The folders of all runs, and the demo that they start from."""

    def __init__(self, work_dir: Path, demo_output: Path, demo_data: Path, num_others: int) -> None:
        self.work_dir, self.base, self.demo_data = work_dir, demo_output / "final", demo_data
        self.num_others = num_others

    def run_dir(self, name: str) -> Path:
        return self.work_dir / "runs" / name

    def make(self, name: str, case: Case) -> dict:
        """Train and measure a run, or read what was measured of it; return its result."""
        path = self.run_dir(name) / "result.json"
        if not path.exists():
            self.run_dir(name).mkdir(parents=True, exist_ok=True)
            if case.method != "none":
                self.train(name, case)
            result = {"case": vars(case), **self.measure(name, case)}
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))

    def train(self, name: str, case: Case) -> None:
        """Train a run to its end; one that was stopped goes on."""
        train_dir = self.work_dir / "train"
        if case.prior:
            train_dir = with_prior(self.work_dir, self.demo_data / "train")
        run_script(
            train_guidance.main, *SHARED, *METHODS[case.method], *case.flags,
            "--champ_checkpoint_dir", self.base, "--train_data_dir", train_dir,
            "--validation_data_dir", self.work_dir / "validation", "--output_dir", self.run_dir(name),
            "--logging_dir", self.work_dir / "logs", "--cache_dir", self.work_dir / "latents",
            "--seed", str(case.seed), "--max_train_steps", str(case.steps),
        )  # fmt: skip

    def measure(self, name: str, case: Case) -> dict:
        """Return curves, figures of both groups of clips, and the size of the trained files."""
        trained = self.run_dir(name) / "final"
        model = ["--model_path", self.base if case.is_adapter or case.method == "none" else trained]
        if case.is_adapter:
            model += ["--lora", trained]
        groups = {"dancer": (self.work_dir / "test", NUM_VIDEOS["test"]),
                  "others": (self.demo_data / "validation", self.num_others)}  # fmt: skip
        measured = {}
        for group, (data_dir, count) in groups.items():
            eval_dir = self.run_dir(name) / group
            run_script(
                evaluate_guidance.main, *model, *SAMPLING,
                "--data_dir", data_dir, "--output_dir", eval_dir, "--num_clips", str(count),
            )  # fmt: skip
            measured[group] = figures.of_evaluation(eval_dir)
        return {
            "losses": figures.reference_gaps(model, groups),
            "figures": measured,
            "curves": figures.curves_of(self.work_dir / "logs" / name),
            "bytes": figures.size_of(trained),
        }


def main(argv: list[str] | None = None) -> int:
    every = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work_dir", type=Path, default=Path("few_videos"))
    parser.add_argument("--demo_output", type=Path, default=Path("demo_output"))
    parser.add_argument("--demo_data", type=Path, default=Path("demo_data"))
    parser.add_argument("--num_others", type=int, default=8, help="other dancers that are evaluated")
    parser.add_argument("--runs", nargs="+", choices=every, default=[*every])
    arguments = parser.parse_args(argv)
    paths = (path.resolve() for path in (arguments.work_dir, arguments.demo_output, arguments.demo_data))
    comparison = Comparison(*paths, arguments.num_others)
    os.environ |= {curves.WORK: str(comparison.work_dir), curves.DEMO: str(comparison.demo_data)}
    os.chdir(ROOT)
    make_videos(comparison.work_dir)
    results = {name: comparison.make(name, every[name]) for name in arguments.runs}
    print(json.dumps({name: result["bytes"] for name, result in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
