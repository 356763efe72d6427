"""How fast is a training step, and what does it hold? Our trainer in its variants, beside the original CHAMP.

    python benchmarks/train_step.py --size medium --stage motion --json steps.json --plot steps.png
    python benchmarks/train_step.py --size medium --json steps.json \\
        --champ_repo ../champ --champ_python ../champ/.venv/bin/python

Protocol. Every row is a process of its own, so that its peak of memory is its own; repeat 1 of all rows comes
before repeat 2 of any. The networks have random weights, of the same sizes for both trainers; the clips are
the same, with four types of guidance maps. A process trains a warm-up step, then --steps that are timed
(on a GPU one more, for the parts). Samples per second leave the reading of clips out: the trainer's workers
read ahead, and the original's slow reading does not count against it; `data` says what it takes. Where a step
is cached, the VAE, the image encoder and the decoding of videos fall away; with cached features (motion
stage) also the guidance encoders and the reference UNet. Ratios are medians, over repeats,
of the rows of the same repeat. `samples_per_cpu_second` counts the CPU time of all threads: on a machine that
does other work too it is what to look at. `simulated_gb` is what --dry_run says of the row's memory: tensors
alone, without Python, its packages and what allocators keep.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import system.waiting  # noqa: E402  (before torch is loaded)

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.step.report import draw_plot, ratio_table, table_lines  # noqa: E402
from benchmarks.step.sizes import GUIDANCE_TYPES, SIZES, STAGES, Size  # noqa: E402
from datasets import GuidanceDataset, collate_clips, write_video  # noqa: E402
from training.settings.fields import FLAGS  # noqa: E402

FOLDER = Path(__file__).resolve().parent / "step"
NUM_VIDEOS, FRAME_RATE = 4, 8
SD15_MEMORY_GB = 40  # on a CPU, float32: weights, gradients and Adam's moments of both UNets

# {name: settings of train_guidance.py}; all but "uncached" read the latent cache.
CACHED = {"cache_latents": True}
VARIANTS = {
    "cached": CACHED,
    "cached_features": CACHED | {"cache_features": True},
    "uncached": {"cache_latents": False},
    "checkpointing": CACHED | {"gradient_checkpointing": "all"},
    "selective_checkpointing": CACHED | {"gradient_checkpointing": "selective"},
    "no_checkpointing": CACHED | {"gradient_checkpointing": "none"},
    "bf16": CACHED | {"mixed_precision": "bf16"},
    "fp32": CACHED | {"mixed_precision": "no"},
    "xformers": CACHED | {"enable_xformers_memory_efficient_attention": True},
    "compile": CACHED | {"compile": True},
    "8bit_adam": CACHED | {"use_8bit_adam": True},
}
PACKAGES = {"xformers": "xformers", "8bit_adam": "bitsandbytes"}
ORIGINAL_TOO = ("gradient_checkpointing", "mixed_precision")  # settings that its trainers have as well


@dataclass(frozen=True)
class Run:
    """One row of the results to be."""

    who: str  # "ours" or "champ"
    variant: str
    stage: str
    settings: dict


class BenchmarkError(Exception):
    """What the user has to change, in one line."""


def write_data(size: Size, root: Path) -> None:
    """Write a data folder at the size's resolution: short videos of smooth noise with guidance maps."""
    images = functools.partial(smooth_noise, np.random.default_rng(0), size.resolution)
    num_frames = max(size.frames.values()) + 2
    for number in range(NUM_VIDEOS):
        name = f"clip_{number}"
        write_video(root / "videos" / f"{name}.mp4", images(num_frames), FRAME_RATE)
        (root / "reference_images").mkdir(exist_ok=True)
        Image.fromarray(images(1)[0]).save(root / "reference_images" / f"{name}.png")
        for guidance_type in GUIDANCE_TYPES:
            folder = root / guidance_type / name
            folder.mkdir(parents=True)
            for frame, image in enumerate(images(num_frames)):
                Image.fromarray(image).save(folder / f"frame_{frame:03d}.png")


def smooth_noise(random: np.random.Generator, side: int, count: int) -> np.ndarray:
    """Return images uint8 [count, side, side, 3]."""
    coarse = random.integers(0, 256, (count, side // 16, side // 16, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side))) for one in coarse])


def write_batch(size: Size, stage: str, work_dir: Path) -> None:
    """Write one batch for the original, as our dataset reads it, with the guidance side by side."""
    batch_size, num_frames = size.batch_shape(stage)
    dataset = GuidanceDataset(
        work_dir / "data", GUIDANCE_TYPES, [3] * len(GUIDANCE_TYPES), resolution=size.resolution,
        sequence_length=num_frames, center_crop=True,
    )  # fmt: skip
    batch = collate_clips([dataset[number] for number in range(batch_size)])
    tensors = {name: batch[name].contiguous() for name in ("frames", "reference_image", "clip_image")}
    guidance = np.concatenate([batch["guidance"][name].numpy() for name in GUIDANCE_TYPES], axis=2)
    save_file(
        tensors | {"guidance": batch["frames"].new_tensor(guidance)}, work_dir / f"batch_{stage}.safetensors"
    )


def list_runs(arguments) -> tuple[list[Run], list[str]]:
    """Return the runs of a repeat in their order, and a line for each variant that is left out."""
    base = dict(SIZES[arguments.size].settings)
    runs, notes = [], []
    for stage in arguments.stage:
        seen, original = [], {}
        for variant in arguments.variants:
            settings = base | VARIANTS[variant]
            package = PACKAGES.get(variant)
            if variant == "cached_features" and stage != "motion":
                notes.append("cached_features is left out but in the motion stage: the others train them")
            elif package is not None and importlib.util.find_spec(package) is None:
                notes.append(f"{variant} is left out: {package} is not installed (requirements-gpu.txt)")
            elif variant == "xformers" and arguments.device == "cpu":
                notes.append("xformers is left out: it needs a GPU")
            elif _without_defaults(settings) not in seen:
                seen.append(_without_defaults(settings))
                runs.append(Run("ours", variant, stage, settings))
                shared = original_settings(settings, stage)
                name = "original" if shared == original_settings(base, stage) else f"original, {variant}"
                original[name] = Run("champ", name, stage, shared)
        if arguments.champ_repo is not None:
            runs.extend(original.values())
    return runs, sorted(set(notes))


def original_settings(settings: dict, stage: str) -> dict:
    """Return what the original runs with beside a variant of ours.

    It recomputes whole blocks or nothing, and cannot where its reference UNet trains: its reentrant
    checkpointing goes through the reference's graph twice, and fails. There it runs without.
    """
    shared = {name: settings[name] for name in ORIGINAL_TOO if name in settings}
    if stage != "motion" or shared.get("gradient_checkpointing") != "all":
        shared.pop("gradient_checkpointing", None)
    return shared


def _without_defaults(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if FLAGS[name].default != value}


def run_one(run: Run, arguments, work_dir: Path) -> dict:
    """Return the row of a run, from a process of its own; {"error": its last line} where it failed."""
    spec = {
        "size": arguments.size, "stage": run.stage, "settings": run.settings, "device": arguments.device,
        "work_dir": str(work_dir), "warmup_steps": 1, "steps": arguments.steps, "simulate": True,
        "batch_size": SIZES[arguments.size].batch_shape(run.stage)[0],
        "champ_repo": str(arguments.champ_repo and arguments.champ_repo.resolve()),
    }  # fmt: skip
    command = [sys.executable, str(FOLDER / "our_step.py")]
    if run.who == "champ":
        command = [str(arguments.champ_python), str(FOLDER / "champ_original_step.py")]
    environment = {"CUDA_VISIBLE_DEVICES": ""} if arguments.device == "cpu" else {}
    facts = {"who": run.who, "variant": run.variant, "stage": run.stage, "settings": run.settings}
    return {**facts, **row_of_process(command, spec, work_dir, environment)}


def row_of_process(command: list[str], spec: dict, work_dir: Path, environment: dict[str, str]) -> dict:
    """Return the row that a process writes for a spec; {"error": its last line} where it failed.

    environment: what it has beside this process's own.
    """
    spec_path, row_path = work_dir / "spec.json", work_dir / "row.json"
    spec_path.write_text(json.dumps(spec), encoding="utf-8")
    row_path.unlink(missing_ok=True)
    process = subprocess.run(
        [*command, str(spec_path), str(row_path)], env=os.environ | environment, text=True,
        capture_output=True,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    if process.returncode or not row_path.is_file():
        # Where several processes are launched, the launcher's last line tells nothing.
        lines = process.stderr.strip().splitlines() or ["no message"]
        telling = [line for line in lines if "Error" in line and "ChildFailedError" not in line] or lines
        return {"error": f"exit code {process.returncode}: {telling[-1]}"}
    return json.loads(row_path.read_text(encoding="utf-8"))


def measure(arguments, work_dir: Path) -> dict:
    """Run all repeats; the JSON file is written anew after each row, so that a stop keeps what there is."""
    size = SIZES[arguments.size]
    runs, notes = list_runs(arguments)
    for note in notes:
        print(note, file=sys.stderr)
    write_data(size, work_dir / "data")
    if arguments.champ_repo is not None:
        for stage in arguments.stage:
            write_batch(size, stage, work_dir)
    result = {"size": arguments.size, "left_out": notes, "ratios": {}, "rows": []}
    bar = tqdm(total=arguments.repeats * len(runs), desc="rows", unit="row")
    for repeat in range(1, arguments.repeats + 1):
        for run in runs:
            bar.set_postfix_str(f"{run.stage}, {run.who} {run.variant}")
            result["rows"].append({"repeat": repeat, **run_one(run, arguments, work_dir)})
            result["ratios"] = {
                stage: ratio_table([row for row in result["rows"] if row["stage"] == stage])
                for stage in arguments.stage
            }
            arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            bar.update()
    bar.close()
    return result


def check(arguments) -> None:
    """Raise BenchmarkError for what cannot run here, before anything takes time."""
    if (arguments.champ_repo is None) != (arguments.champ_python is None):
        raise BenchmarkError("--champ_repo and --champ_python go together: give both or neither")
    if arguments.champ_repo is not None:
        if not (arguments.champ_repo / "models" / "mutual_self_attention.py").is_file():
            raise BenchmarkError(
                f"--champ_repo {arguments.champ_repo}: no models/mutual_self_attention.py; expected a "
                "checkout of github.com/fudan-generative-vision/champ"
            )
        _check_champ_python(arguments.champ_python)
    if arguments.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise BenchmarkError(
            "--plot needs matplotlib: run `pip install matplotlib` (it is in requirements-prepare.txt)"
        )
    if arguments.json.exists() and not arguments.json.is_file():
        raise BenchmarkError(f"--json {arguments.json}: is no file; give the name of a file to write")
    if not arguments.json.resolve().parent.is_dir():
        raise BenchmarkError(f"--json {arguments.json}: its folder does not exist; make it first")
    free_gb = psutil.virtual_memory().available / 2**30
    if arguments.size == "sd15" and arguments.device == "cpu" and free_gb < SD15_MEMORY_GB:
        raise BenchmarkError(
            f"--size sd15 on a CPU takes about {SD15_MEMORY_GB} GB, {free_gb:.0f} are free: use --device cuda"
        )
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BenchmarkError("--device cuda: PyTorch sees no GPU here; use --device cpu")


def _check_champ_python(python: Path) -> None:
    needed = "torch, accelerate, diffusers, einops, omegaconf, safetensors, transformers"
    try:
        command = [str(python), "-c", f"import {needed}"]
        process = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        raise BenchmarkError(f"--champ_python {python}: {error.strerror}; give a Python program") from None
    if process.returncode:
        last_line = process.stderr.strip().splitlines()[-1]
        raise BenchmarkError(
            f"--champ_python {python}: {last_line}; install what the original requires (diffusers 0.24)"
        )


def parse(argv: list[str] | None) -> argparse.Namespace:
    quick = [variant for variant in VARIANTS if variant != "compile"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=quick,
                        help="default: all but compile, which takes minutes")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="processes of each row, interleaved")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, required=True, help="where to write rows and ratios")
    parser.add_argument("--plot", type=Path, help="where to draw time and memory (.png)")
    parser.add_argument("--champ_repo", type=Path, help="a checkout of the original CHAMP")
    parser.add_argument("--champ_python", type=Path, help="a Python in which the original runs")
    arguments = parser.parse_args(argv)
    if min(arguments.repeats, arguments.steps) < 1:
        parser.error("--repeats and --steps must be at least 1")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 2 cannot run here, 1 a row failed."""
    arguments = parse(argv)
    return run(arguments, arguments, measure, table_lines, draw_plot)


def run(
    arguments: argparse.Namespace,
    checked: argparse.Namespace,
    measure: Callable,
    lines: Callable,
    draw: Callable,
) -> int:
    """Check, measure, print the table and what failed, draw the plot; return the exit code."""
    try:
        check(checked)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as work_dir:
        result = measure(arguments, Path(work_dir))
    print("\n".join(lines(result)))
    failed = [row for row in result["rows"] if "error" in row]
    for row in failed:
        print(f"failed: {row}", file=sys.stderr)
    if arguments.plot is not None and len(failed) < len(result["rows"]):
        draw(result, arguments.plot)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
