"""Three short videos of one new dancer: what fine-tuning learns of her, and what it forgets of others.

    python benchmarks/few_videos/compare.py --work_dir few_videos [--runs none full_1 ...]

Protocol. A drawn dancer whom the demo's model has never seen (data.py): three training videos of 40 frames,
three to other songs for the curves, eight for the figures. Each run starts from the demo's model: `none`
is that model as it is, `full_S` trains all of it for 100 steps of one clip with seed S, `lora_S` adapters
alone, `*_long` 300 steps, `*_prior` with as many of the demo's own training videos as of the dancer's. Then
`evaluate_guidance.py` samples frames 8 to 15 of the dancer's eight videos and of the demo's first held-out
dancers, with one noise per clip. Silhouettes are those of `demo_quality.py`, of the written videos. The
reference gap is that of the validation, the reference image taken from another dancer. A figure of three
seeds is the mean over seeds of each clip, its interval 95 % over clips; differences are paired with `none`.
Runs that are finished stay as they are: `curves.json` and `figures.json` of a run are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import system.waiting  # noqa: E402  (before torch is loaded)

import evaluate_guidance  # noqa: E402
import train_guidance  # noqa: E402
from benchmarks.few_videos import curves, figures, report  # noqa: E402
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
    "lora": ["--learning_rate", "1e-3", "--lora_rank", "8"],
}
SEARCH = {
    "full_faster": ("--learning_rate", "5e-4"),
    "lora_slower": ("--learning_rate", "5e-4"),
    "lora_faster": ("--learning_rate", "2e-3"),
}  # fmt: skip
SEARCH_STEPS = 50
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
    goes_on: str | None = None  # from the last checkpoint of another run
    has_figures: bool = True  # beside the curves

    @property
    def is_adapter(self) -> bool:
        return self.method == "lora"


def cases() -> dict[str, Case]:
    found = {"none": Case("none")}
    for method in ("full", "lora"):
        found |= {f"{method}_{seed}": Case(method, seed) for seed in SEEDS}
        found[f"{method}_long"] = Case(method, SEEDS[0], LONG, goes_on=f"{method}_{SEEDS[0]}")
        found[f"{method}_prior"] = Case(method, SEEDS[0], prior=True)
    # The search of the learning rates.
    for name, flags in SEARCH.items():
        found[name] = Case(name.split("_")[0], SEEDS[0], SEARCH_STEPS, flags=flags, has_figures=False)
    return found


def run_script(main: Callable, *flags: str | Path) -> None:
    """Run one of the project's scripts in this process. Raises SystemExit where it fails."""
    code = main([*map(str, flags)])
    if code:
        raise SystemExit(code)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


class Comparison:
    """The folders of all runs, and the demo that they start from."""

    def __init__(self, work_dir: Path, demo_output: Path, demo_data: Path, num_others: int) -> None:
        self.work_dir, self.base, self.demo_data = work_dir, demo_output / "final", demo_data
        self.num_others = num_others

    def run_dir(self, name: str) -> Path:
        return self.work_dir / "runs" / name

    def make(self, name: str, case: Case, *, measures: bool = True) -> dict:
        """Train and measure a run, or read what was measured of it; return its result."""
        trained, measured = self.run_dir(name) / "curves.json", self.run_dir(name) / "figures.json"
        if not trained.exists():
            self.run_dir(name).mkdir(parents=True, exist_ok=True)
            if case.goes_on is not None:
                self.make(case.goes_on, cases()[case.goes_on], measures=False)
            if case.method != "none":
                self.train(name, case)
            write_json(trained, self.curves(name, case))
        if measures and case.has_figures and not measured.exists():
            write_json(measured, self.measure(name, case))
        result = {"case": vars(case), "curves": read_json(trained)}
        return result | (read_json(measured) if measured.exists() else {})

    def train(self, name: str, case: Case) -> None:
        """Train a run to its end; one that was stopped goes on."""
        train_dir = self.work_dir / "train"
        if case.prior:
            train_dir = with_prior(self.work_dir, self.demo_data / "train")
        for checkpoint in self.run_dir(case.goes_on).glob("checkpoint-*") if case.goes_on else ():
            if not (self.run_dir(name) / checkpoint.name).exists():
                shutil.copytree(checkpoint, self.run_dir(name) / checkpoint.name)
        run_script(
            train_guidance.main, *SHARED, *METHODS[case.method], *case.flags,
            "--champ_checkpoint_dir", self.base, "--train_data_dir", train_dir,
            "--validation_data_dir", self.work_dir / "validation", "--output_dir", self.run_dir(name),
            "--logging_dir", self.work_dir / "logs", "--cache_dir", self.work_dir / "latents",
            "--seed", str(case.seed), "--max_train_steps", str(case.steps),
        )  # fmt: skip

    def curves(self, name: str, case: Case) -> dict[str, dict[str, float]]:
        """Return {group of clips: {step: loss}} from the start, also of a run that another one begins."""
        if case.method == "none":
            return figures.start_of_curves(self.base)
        curves = figures.curves_of(self.work_dir / "logs" / name)
        before = self.curves(case.goes_on, cases()[case.goes_on]) if case.goes_on else {}
        return {group: before.get(group, {}) | points for group, points in curves.items()}

    def measure(self, name: str, case: Case) -> dict:
        """Return the figures of both groups of clips, and the size of the trained files."""
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
    parser.add_argument("--train_only", action="store_true", help="train, and measure nothing yet")
    arguments = parser.parse_args(argv)
    paths = (path.resolve() for path in (arguments.work_dir, arguments.demo_output, arguments.demo_data))
    comparison = Comparison(*paths, arguments.num_others)
    os.environ |= {curves.WORK: str(comparison.work_dir), curves.DEMO: str(comparison.demo_data)}
    os.chdir(ROOT)
    make_videos(comparison.work_dir)
    results = {
        name: comparison.make(name, every[name], measures=not arguments.train_only) for name in arguments.runs
    }
    print("\n".join(report.lines(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
