"""What fast settings of sampling cost: every held-out clip with every setting, paired with the first."""

import json

import numpy as np
from tqdm import tqdm

from benchmarks.demo_quality import (
    START_FRAME,
    clip_psnr,
    frames_of,
    overlap,
    read_clips,
    silhouettes,
)
from benchmarks.sample.demo_model import DemoModel, interval_of, interval_text, mean_of
from benchmarks.sample.settings import Setting
from demo.data import sample_scene
from evaluation.clips.truth import Truth
from evaluation.confidence import paired_difference
from evaluation.metrics.pixels import psnr

SETTINGS = (
    "ddim:20", "ddim:12", "ddim:10:interval=0.4,8", "dpmsolver++:10", "dpmsolver++:10:interval=0.4,8",
    "dpmsolver++:8:interval=0.4,8", "unipc:10", "unipc:10:interval=0.4,8", "unipc:8:interval=0.4,8",
)  # fmt: skip
# {metric: the loss that a setting called "not worse" must exclude}
LIMITS = {"psnr": 0.3, "psnr_of_frames": 0.3, "overlap": 0.02}


def measure(arguments) -> dict:
    """Sample all clips with all settings; the JSON file is written anew after each setting."""
    model = DemoModel(arguments.model_path)
    config = model.pipeline.config
    clips = read_clips(arguments.data_dir, config, START_FRAME, config.sequence_length)[: arguments.num_clips]
    result = {"baseline": arguments.settings[0].name, "settings": {}}
    bar = tqdm(total=len(clips) * len(arguments.settings), unit="clip")
    for setting in arguments.settings:
        rows = []
        for clip in clips:
            rows.append(measure_clip(model, clip, setting))
            bar.update()
        baseline = result["settings"].get(result["baseline"], {"clips": rows})["clips"]
        result["settings"][setting.name] = summary(rows, baseline)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    bar.close()
    return result


def measure_clip(model: DemoModel, clip: Truth, setting: Setting) -> dict[str, float]:
    sampled, truth, scene = model.sample(clip, setting), frames_of(clip), sample_scene(clip.sample_id)
    bodies = (silhouettes(frames, scene, clip.frames) for frames in (sampled.frames, truth))
    return {
        "sample_id": clip.sample_id,
        "psnr": clip_psnr(sampled.frames, truth),
        "psnr_of_frames": float(np.mean(psnr(sampled.frames, truth))),
        "overlap": overlap(*bodies),
        "forwards": sampled.forwards,
        "cpu_seconds": sampled.cpu_seconds,
    }


def summary(rows: list[dict], baseline: list[dict]) -> dict:
    """Return means, paired differences from the baseline's rows, and whether they exclude a loss."""
    values = {name: [row[name] for row in rows] for name in LIMITS}
    differences = {name: paired_difference(values[name], [row[name] for row in baseline]) for name in LIMITS}
    return {
        **{name: mean_of(values[name]) for name in LIMITS},
        "differences": {
            name: interval_of(found.mean, found.low, found.high) for name, found in differences.items()
        },
        "is_not_worse": all(differences[name].low > -limit for name, limit in LIMITS.items()),
        **{name: float(np.mean([row[name] for row in rows])) for name in ("forwards", "cpu_seconds")},
        "clips": rows,
    }


def table_lines(result: dict) -> list[str]:
    """Return a Markdown table, one line per setting."""
    lines = [
        "| setting | forwards | CPU s | " + " | ".join(f"{name} | difference" for name in LIMITS)
        + " | not worse |",
        "|" + "---|" * (4 + 2 * len(LIMITS)),
    ]  # fmt: skip
    for name, row in result["settings"].items():
        cells = [f"{row['forwards']:.0f}", f"{row['cpu_seconds']:.1f}"]
        for metric in LIMITS:
            difference = interval_text(row["differences"][metric], "+.3f")
            cells += [f"{row[metric]['mean']:.3f}", difference]
        lines.append(f"| {name} | {' | '.join(cells)} | {'yes' if row['is_not_worse'] else 'no'} |")
    return lines
