"""Seams between the windows of a long sample: our pipeline's settings beside the original's windows."""

import json
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.demo_quality import frames_of, read_clips
from benchmarks.sample.demo_model import DemoModel, interval_text, mean_of
from benchmarks.sample.plain import PlainSampler, champ_windows
from benchmarks.sample.settings import Setting
from evaluation.clips.truth import Truth
from evaluation.metrics.pixels import psnr
from evaluation.metrics.temporal import SMALLEST_JUMP, dtssd, frame_jumps, seam_ratio
from pipelines.panels import frames_to_uint8
from pipelines.schedulers import make_scheduler, set_steps

SETTINGS = ("ddim:12", "ddim:12:grids=2", "ddim:12:noise=shared", "ddim:12:grids=2:noise=shared")
CHAMP = "champ"
JUMPS = ("seam_ratio", "of_truth", "against_truth", "of_errors")
FIGURES = (*JUMPS, *(f"{name}_with_ends" for name in JUMPS), "psnr")


def measure(arguments) -> dict:
    """Sample all clips in all ways; the JSON file is written anew after each way."""
    model = DemoModel(arguments.model_path)
    clips = read_clips(arguments.data_dir, model.pipeline.config, 0, None)[: arguments.num_clips]
    ways = {CHAMP: arguments.settings[0]} | {setting.name: setting for setting in arguments.settings}
    result = {"frames": len(clips[0].frames), "settings": {}}
    bar = tqdm(total=len(clips) * len(ways), unit="clip")
    for name, setting in ways.items():
        rows = []
        for clip in clips:
            rows.append({"sample_id": clip.sample_id, **measure_clip(model, clip, name, setting)})
            bar.update()
        means = {figure: mean_of([row[figure] for row in rows]) for figure in FIGURES}
        result["settings"][name] = {**means, "clips": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    bar.close()
    return result


def measure_clip(model: DemoModel, clip: Truth, name: str, setting: Setting) -> dict[str, float]:
    truth = frames_of(clip)
    if name == CHAMP:
        frames, windows = sample_as_champ(model, clip, setting)
    else:
        frames, windows = model.sample(clip, setting).frames, our_windows(model, len(truth), setting)
    return seam_figures(frames, truth, windows) | {"psnr": float(np.mean(psnr(frames, truth)))}


def seam_figures(frames: np.ndarray, truth: np.ndarray, windows: Sequence[torch.Tensor]) -> dict[str, float]:
    """Return all FIGURES but for the PSNR, of frames uint8 [F, H, W, 3]."""
    starts = {int(window[0]) for window in windows} - {0}
    ends = {int(window[-1]) + 1 for window in windows} - {len(frames)}
    jumps, true_jumps = frame_jumps(frames), frame_jumps(truth)
    against_truth = np.maximum(jumps, SMALLEST_JUMP) / np.maximum(true_jumps, SMALLEST_JUMP)
    row = {}
    for name, values in zip(JUMPS, (jumps, true_jumps, against_truth, dtssd(frames, truth)), strict=True):
        row[name], _ = seam_ratio(values, starts)
        row[f"{name}_with_ends"], _ = seam_ratio(values, starts | ends)
    return row


def our_windows(model: DemoModel, num_frames: int, setting: Setting) -> list[torch.Tensor]:
    """Return the frames of the windows of the last step: what it does, no other step smooths."""
    grids = model.pipeline.grids(num_frames, None, None, setting.window_grids)
    grid = grids[(setting.num_inference_steps - 1) % len(grids)]
    return [torch.arange(num_frames)[window] for window in grid.windows]


def sample_as_champ(model: DemoModel, clip: Truth, setting: Setting) -> tuple[np.ndarray, list[torch.Tensor]]:
    """Return (frames uint8 [F, H, W, 3], windows) of the original's scheme, from the pipeline's own noise."""
    pipeline, num_frames = model.pipeline, len(clip.frames)
    [grid] = pipeline.grids(num_frames, None, None)
    windows = champ_windows(num_frames, grid.windows[0].stop, grid.fade)
    plain = PlainSampler(pipeline.model, pipeline.frozen)
    encoded = plain.encode(model.reference(clip), clip.guidance)
    size = (side // pipeline.frozen.latent_factor for side in clip.size)
    noise = torch.randn(1, num_frames, 4, *size, generator=torch.Generator().manual_seed(clip.place))
    scheduler = make_scheduler(setting.scheduler, model.trained)
    set_steps(scheduler, setting.num_inference_steps)
    frames = plain.sample_as_champ(encoded, noise, scheduler, windows, setting.guidance_scale)
    return frames_to_uint8(frames), windows


def table_lines(result: dict) -> list[str]:
    """Return a Markdown table, one line per way."""
    lines = ["| | " + " | ".join(FIGURES) + " |", "|" + "---|" * (1 + len(FIGURES))]
    for name, row in result["settings"].items():
        lines.append(f"| {name} | {' | '.join(interval_text(row[figure]) for figure in FIGURES)} |")
    return lines
