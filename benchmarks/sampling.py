"""How fast is sampling beside the original CHAMP, what do fast settings cost, and are there seams?

    python benchmarks/sampling.py speed --json speed.json --plot speed.png \\
        --champ_repo ../champ --champ_python ../champ/.venv/bin/python [--recommended dpmsolver++:10]
    python benchmarks/sampling.py quality --model_path demo_output/final --data_dir demo_data/validation \\
        [--settings ddim:20 dpmsolver++:10 dpmsolver++:10:interval=0.4,8] --json quality.json
    python -m datasets.demo_data --output_dir long_data --num_train 1 --num_frames 64
    python benchmarks/sampling.py seams --model_path demo_output/final --data_dir long_data/validation \\
        --json seams.json

Protocol of `speed`. Every row is a process of its own on one thread, so that its peak of memory is its own;
repeat 1 of all rows comes before repeat 2 of any. The networks have random weights, of the same sizes on both
sides; reference and guidance (four types of maps) are the same images, windows and guidance scale are the
original's defaults. A row is one sample of --steps steps of DDIM, from images in memory to frames in memory,
after a first sample of two frames that is not counted.
- `ours`: our pipeline; `bare`: the forwards of the UNet that its steps and windows require (both halves), and
  encoding and decoding once, with nothing between them; `original`: the original's own pipeline.
- `recommended`: our pipeline with the setting of --recommended, all its steps.
- A *forward* is one half (with reference, or without it) of one window. The original's last window wraps to
  the clip's beginning: for 64 frames it has four windows where ours are three.
- *A full sample* has --full_steps steps (default 20, the original's own); its time is taken from that of the
  UNet per step, but for `recommended`, which has the steps of its setting.
- Ratios are medians, over repeats, of rows of the same repeat. Memory "less packages" is without what the
  process held before any network was made.

Protocol of `quality`. The held-out clips of demo_quality.py (frames 8 to 8 + F - 1 of each, noise of the seed
that is its number), sampled with each of --settings; the first is what the others are held against. `psnr` is
of a clip's mean error, `psnr_of_frames` the mean over frames, `overlap` that of the silhouettes; differences
are paired over clips, with 95 % bootstrap intervals. A setting is "not worse" where the intervals exclude a
loss of 0.3 dB (of either kind) and of 0.02 overlap.

Protocol of `seams`. The clips of a folder from its first frame on, sampled whole, in windows as long as the
model was trained for: with each of --settings, and as `champ` with the solver of the first of them in the
original's windows, which never move, are averaged with equal weights, and wrap to the beginning. `seam_ratio`
is that of evaluate_guidance.py where the last step's windows begin; `_with_ends` also where they end,
which without a fade is the same kind of seam. The demo's beats can fall on borders: `of_truth` is the same
ratio of the truth, `against_truth` that of the sample's jumps in parts of the truth's, `of_errors` that of
their difference (dtSSD). Means over clips, 95 % intervals.

SETTINGS are words: SCHEDULER:STEPS[:scale=S][:interval=LOW,HIGH][:grids=1|2][:noise=own|shared].
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import system.waiting  # noqa: E402  (before torch is loaded)

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.sample import quality, seams  # noqa: E402
from benchmarks.sample.parts import PARTS  # noqa: E402
from benchmarks.sample.report import RATIOS, add_figures, table_lines  # noqa: E402
from benchmarks.sample.settings import FORM, GUIDANCE_SCALE, setting  # noqa: E402
from benchmarks.step.report import draw_plot, ratio_table  # noqa: E402
from benchmarks.step.sizes import GUIDANCE_TYPES, SIZES, Size  # noqa: E402
from benchmarks.train_step import row_of_process, run, smooth_noise  # noqa: E402

FOLDER = Path(__file__).resolve().parent / "sample"
ON_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SIZES_ON_CPU = [name for name in SIZES if name != "sd15"]
WHO = ("ours", "bare", "original", "recommended")


def write_inputs(size: Size, num_frames: int, path: Path) -> None:
    """Write a reference and guidance maps as uint8 images."""
    images = functools.partial(smooth_noise, np.random.default_rng(0), size.resolution)
    np.savez(path, reference=images(1)[0], **{name: images(num_frames) for name in GUIDANCE_TYPES})


def list_cases(arguments) -> list[dict]:
    """Return what each row of a repeat is told, in the order in which they run."""
    cases = []
    for size in arguments.size:
        for num_frames in arguments.frames:
            same, recommended = f"ddim:{arguments.steps}", arguments.recommended
            settings = dict.fromkeys(WHO, same) | {"recommended": recommended and recommended.name}
            for who in WHO:
                is_left_out = settings[who] is None or (who == "original" and arguments.champ_repo is None)
                if not is_left_out:
                    cases.append({
                        "who": who, "size": size, "num_frames": num_frames, "setting": settings[who],
                    })  # fmt: skip
    return cases


def run_case(case: dict, arguments, work_dir: Path) -> dict:
    """Return the row of a case, from a process of its own."""
    inputs = work_dir / f"{case['size']}.npz"
    if not inputs.exists():
        write_inputs(SIZES[case["size"]], max(arguments.frames), inputs)
    spec = case | {
        "inputs": str(inputs), "guidance_scale": GUIDANCE_SCALE,
        "context_frames": arguments.context_frames, "context_overlap": arguments.context_overlap,
        "champ_repo": str(arguments.champ_repo and arguments.champ_repo.resolve()),
        "batch_size": case["num_frames"], "warmup_steps": 0, "steps": 1,
    }  # fmt: skip
    command = [sys.executable, str(FOLDER / "our_sample.py")]
    if case["who"] == "original":
        command = [str(arguments.champ_python), str(FOLDER / "champ_original_sample.py")]
    row = row_of_process(command, spec, work_dir, ON_ONE_THREAD)
    facts = {
        "stage": f"{case['size']}, {case['num_frames']} frames", "variant": case["who"],
        "setting": case["setting"], "num_inference_steps": setting(case["setting"]).num_inference_steps,
    }  # fmt: skip
    return add_figures(facts | row, arguments.full_steps)


def measure(arguments, work_dir: Path) -> dict:
    """Run all repeats; the JSON file is written anew after each row, so that a stop keeps what there is."""
    cases = list_cases(arguments)
    protocol = ("steps", "full_steps", "context_frames", "context_overlap")
    result = {"protocol": {name: getattr(arguments, name) for name in protocol}, "ratios": {}, "rows": []}
    bar = tqdm(total=arguments.repeats * len(cases), desc="rows", unit="row")
    for repeat in range(1, arguments.repeats + 1):
        for case in cases:
            bar.set_postfix_str(f"{case['size']}, {case['num_frames']} frames, {case['who']}")
            rows = result["rows"]
            rows.append({"repeat": repeat, **run_case(case, arguments, work_dir)})
            of_case = [row for row in rows if row["stage"] == rows[-1]["stage"]]
            result["ratios"][rows[-1]["stage"]] = ratio_table(of_case, RATIOS)
            arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            bar.update()
    bar.close()
    return result


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    add = commands.add_parser("speed").add_argument
    add("--size", nargs="+", choices=SIZES_ON_CPU, default=["small", "medium"])
    add("--frames", nargs="+", type=int, default=[16, 64])
    add("--steps", type=int, default=2, help="steps of a timed sample")
    add("--full_steps", type=int, default=20, help="steps of a sample as users make it")
    add("--recommended", type=setting, metavar="SETTING", help=FORM)
    add("--context_frames", type=int, default=24)
    add("--context_overlap", type=int, default=4)
    add("--repeats", type=int, default=3, help="processes of each row, interleaved")
    add("--json", type=Path, required=True, help="where to write rows and ratios")
    add("--plot", type=Path, help="where to draw time and memory (.png)")
    add("--champ_repo", type=Path, help="a checkout of the original CHAMP")
    add("--champ_python", type=Path, help="a Python in which the original runs")

    for name, settings in (("quality", quality.SETTINGS), ("seams", seams.SETTINGS)):
        add = commands.add_parser(name).add_argument
        add("--model_path", type=Path, required=True, help="final/ of the demo")
        add("--data_dir", type=Path, required=True, help="a validation folder of the demo's data")
        add("--settings", nargs="+", type=setting, metavar="SETTING", help=FORM,
            default=[*map(setting, settings)])  # fmt: skip
        add("--num_clips", type=int, help="the first so many clips only")
        add("--json", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.command == "speed":
        if min(arguments.repeats, arguments.steps) < 1:
            parser.error("--repeats and --steps must be at least 1")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 2 cannot run here, 1 a row failed."""
    arguments = parse(argv)
    if arguments.command == "speed":
        draw = functools.partial(draw_plot, parts=PARTS, of="a sample")
        checked = argparse.Namespace(**vars(arguments) | {"device": "cpu"})
        return run(arguments, checked, measure, table_lines, draw)
    module = {"quality": quality, "seams": seams}[arguments.command]
    result = module.measure(arguments)
    print("\n".join(module.table_lines(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
